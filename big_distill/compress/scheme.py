"""How each parameter of a student is represented, as its config asks, and how pruning goes on.

A representation is a pair (params, aux): what is trained, and how it becomes the dense parameters that the network
computes with, which `state.materialize` makes of the two. All else (loss, optimiser, checkpoints) is as in any run.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from big_distill.compress import pruning, sharing
from big_distill.config import CompressConfig, Config
from big_distill.errors import ConfigError, nearest
from big_distill.models import FACTORS
from big_distill.state import Aux, Params, Representation, by_path, path_name

Masks = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How each parameter is represented, by its path.

    old: parameters that the run starts with: where they are zero they were pruned, and stay so.
    sparsity: share of its weights that are zero in the end; under the scope 'global' that of all of them together.
    bits: of a code, where weights are shared.
    top: the largest integer, where weights are integers.
    rounded: what is trained in bfloat16.
    """

    config: CompressConfig
    total_steps: int
    seed: int
    old: frozenset[str]
    sparsity: dict[str, float]
    bits: dict[str, int]
    top: dict[str, int]
    rounded: tuple[str, ...]

    def encode(self, params: Params) -> tuple[Params, Aux]:
        """Dense parameters as this run begins with them.

        Returns:
          (what is trained, what `materialize` needs to know of it), both with the paths of `params`.
        """
        kernels = self._kernels(params)
        masks = {name: (kernel != 0) | (name not in self.old) for name, kernel in kernels.items()}
        if masks:
            masks = self._pruned(kernels, masks, jnp.int32(self.total_steps if self.bits else 0))
        aux = {name: Representation(half=True) for name in self.rounded}
        for name, mask in masks.items():
            aux[name] = Representation(mask=mask, top=self.top.get(name, 0), half=name in self.rounded)
        trained = {}
        for index, (name, bits) in enumerate(self.bits.items()):
            key = jax.random.fold_in(jax.random.key(self.seed), index)
            kernel = jnp.where(masks[name], kernels[name], 0)
            trained[name], codes = sharing.share(kernel, bits, self.config.centroids, key)
            aux[name] = Representation(codes=codes)
        return (_replaced(params, trained) if trained else params), aux

    def refresh(self, params: Params, aux: Aux, step: jax.Array) -> Aux:
        """`aux` after `step` updates: that of before, or with more zeros where the schedule says so."""
        kernels = self._kernels(params)
        masks: Masks = {name: aux[name].mask for name in kernels}
        due = pruning.is_due(step, *self._span, self.config.prune_every_steps)
        masks = jax.lax.cond(due, lambda: self._pruned(kernels, masks, step), lambda: masks)
        return aux | {name: dataclasses.replace(aux[name], mask=mask) for name, mask in masks.items()}

    @property
    def prunes(self) -> bool:
        """Whether `refresh` may change anything."""
        return bool(self.sparsity) and max(self.sparsity.values()) > 0 and not self.bits

    @property
    def done_at(self) -> int:
        """The step from which on the student is as sparse as it will be."""
        return self._span[1] if self.prunes else 0

    @property
    def _span(self) -> tuple[int, int]:
        """First and last step of pruning."""
        begin, end = (round(share * self.total_steps) for share in (self.config.prune_begin, self.config.prune_end))
        return (end if self._group else begin), end

    @property
    def _group(self) -> tuple[int, int] | None:
        """(N, M) of an N:M structure."""
        kept, colon, group = self.config.structure.partition(":")
        return (int(kept), int(group)) if colon else None

    def _pruned(self, kernels: dict[str, jax.Array], masks: Masks, step: jax.Array) -> Masks:
        """Masks for the sparsity of a step; what was zero stays zero."""

        def keep(sizes: dict[str, jax.Array], sparsity: float) -> Masks:
            due = pruning.progress(self.config.prune_schedule, step, *self._span, sparsity)
            return pruning.keep_largest(sizes, sparsity, due)

        sizes = {name: _sizes(kernel, masks[name]) for name, kernel in kernels.items()}
        if self._group is not None:
            due, pair = step >= self._span[1], self._group
            return masks | {
                name: jnp.where(due, pruning.keep_of_each(size, *pair), masks[name])
                for name, size in sizes.items()
                if self.sparsity[name]
            }
        if self.config.scope == "global":
            return keep(sizes, self.config.sparsity)
        return {name: keep({name: size}, self.sparsity[name])[name] for name, size in sizes.items()}

    def _kernels(self, params: Params) -> dict[str, jax.Array]:
        leaves = by_path(params)
        return {name: leaves[name] for name in self.sparsity}


def make_scheme(run: Config, abstract: Params) -> Scheme:
    """The scheme that a resolved config asks of its student's parameters, given the dense ones or their shapes.

    Raises:
      ConfigError: a pattern that matches nothing.
    """
    config = run.compress
    shapes = {name: leaf.shape for name, leaf in by_path(abstract).items()}
    grouped = ":" in config.structure
    pruned = grouped or (config.structure == "weights" and bool(config.sparsity or config.layer_sparsity))
    chosen: list[str] = []
    if pruned or config.bits or config.integer_bits:
        chosen = matching("layers", config.layers, list(shapes))
    sparsity: dict[str, float] = dict.fromkeys(chosen, 0.0)
    if grouped:
        kept, group = map(int, config.structure.split(":"))
        sparsity |= {
            name: 1 - kept / group for name in chosen if len(shapes[name]) > 1 and shapes[name][-2] % group == 0
        }
        if not any(sparsity.values()):
            raise ConfigError(f"config.compress.structure={config.structure!r}: no kernel's inputs fit it")
    elif pruned:
        sparsity = by_layer("layer_sparsity", config.layer_sparsity, config.sparsity, chosen)
    bits = by_layer("layer_bits", config.layer_bits, config.bits, chosen) if config.bits else {}
    top = dict.fromkeys(chosen, 2 ** (config.integer_bits - 1) - 1) if config.integer_bits else {}
    begun = run.init_from or run.init_config
    old = [name for name in shapes if begun and not re.fullmatch(run.init_fresh or "", name)]
    exact = chosen if config.bits or config.integer_bits else []
    rest = tuple(name for name in shapes if name not in exact) if config.rest == "bfloat16" else ()
    rounded_bits = {name: round(value) for name, value in bits.items()}
    return Scheme(config, run.total_steps, run.seed, frozenset(old), sparsity, rounded_bits, top, rest)


def matching(field: str, pattern: str, names: list[str]) -> list[str]:
    """The names that `config.compress.FIELD` matches; ConfigError if it matches none."""
    chosen = [name for name in names if _matches(pattern, name)]
    if not chosen:
        raise ConfigError(f"config.compress.{field}: {pattern!r} matches no kernel{nearest(pattern, names)}")
    return chosen


def by_layer(field: str, rules: tuple[str, ...], otherwise: float, names: list[str]) -> dict[str, float]:
    """For each name the value of the first rule, such as fc1/kernel=0.9, that matches it; see `matching`."""
    parsed = [rule.rpartition("=")[::2] for rule in rules]
    for pattern, _ in parsed:
        matching(field, pattern, names)
    return {
        name: next((float(value) for pattern, value in parsed if _matches(pattern, name)), otherwise) for name in names
    }


def _matches(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name; a factor, conv2/first/kernel, has that of its kernel, conv2/kernel, too."""
    whole = re.sub(rf"/({'|'.join(FACTORS)})(?=/kernel$)", "", name)
    return bool(re.fullmatch(pattern, name) or re.fullmatch(pattern, whole))


def _sizes(kernel: jax.Array, mask: jax.Array) -> jax.Array:
    """Magnitudes for `keep_largest`; a kernel that is all zeros, as some heads begin, is new and not small."""
    return jnp.where(mask, jnp.where(jnp.any(kernel), jnp.abs(kernel), jnp.inf), -1)


def _replaced(tree: Any, by_name: dict[str, jax.Array]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: by_name.get(path_name(path), leaf), tree)

"""Represents each parameter of a student as its config asks, and prunes on while it trains.

A representation is a pair (params, aux). The run trains `params`; `state.materialize` makes of the two the dense
parameters that the network computes with. All else (loss, optimiser, checkpoints) is as in any run.
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
    """Describes how each parameter is represented, by its path.

    old: parameters that the run starts with; their zeros were pruned, and stay.
    sparsity: share of its weights that are zero in the end; under the scope 'global' that of all of them together.
    bits: bits of a code, where weights are shared.
    top: largest integer, where weights are integers.
    rounded: parameters that are trained in bfloat16.
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
        """Represents dense parameters as this run begins with them.

        Returns:
          (trained parameters, what `materialize` needs to know of them), both with the paths of `params`.
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
        """Returns `aux` after `step` updates: the same, or with more zeros if the schedule says so."""
        kernels = self._kernels(params)
        masks: Masks = {name: aux[name].mask for name in kernels}
        due = pruning.is_due(step, *self._span, self.config.prune_every_steps)
        masks = jax.lax.cond(due, lambda: self._pruned(kernels, masks, step), lambda: masks)
        return aux | {name: dataclasses.replace(aux[name], mask=mask) for name, mask in masks.items()}

    @property
    def prunes(self) -> bool:
        """Returns True if `refresh` may change anything."""
        return bool(self.sparsity) and max(self.sparsity.values()) > 0 and not self.bits

    @property
    def done_at(self) -> int:
        """Returns the step from which on the student is as sparse as it will be."""
        return self._span[1] if self.prunes else 0

    @property
    def _span(self) -> tuple[int, int]:
        """Returns the first and the last step of pruning."""
        begin, end = (round(share * self.total_steps) for share in (self.config.prune_begin, self.config.prune_end))
        return (end if self._group else begin), end

    @property
    def _group(self) -> tuple[int, int] | None:
        """Returns (N, M) of an N:M structure, or None."""
        kept, colon, group = self.config.structure.partition(":")
        return (int(kept), int(group)) if colon else None

    def _pruned(self, kernels: dict[str, jax.Array], masks: Masks, step: jax.Array) -> Masks:
        """Computes the masks for the sparsity of a step; a weight that was zero stays zero."""

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
    """Makes the scheme that a resolved config asks for, given the student's dense parameters or their shapes.

    Raises:
      ConfigError: a pattern that matches nothing, or an N:M structure that no kernel fits.
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
    """Returns the names that `config.compress.FIELD` matches. Raises ConfigError if it matches none."""
    chosen = [name for name in names if _matches(pattern, name)]
    if not chosen:
        raise ConfigError(f"config.compress.{field}: {pattern!r} matches no kernel{nearest(pattern, names)}")
    return chosen


def by_layer(field: str, rules: tuple[str, ...], otherwise: float, names: list[str]) -> dict[str, float]:
    """Maps each name to the value of the first rule that matches it, such as fc1/kernel=0.9; see `matching`."""
    parsed = [rule.rpartition("=")[::2] for rule in rules]
    for pattern, _ in parsed:
        matching(field, pattern, names)
    return {
        name: next((float(value) for pattern, value in parsed if _matches(pattern, name)), otherwise) for name in names
    }


def _matches(pattern: str, name: str) -> bool:
    """Returns True if a pattern matches a name; a factor, conv2/first/kernel, also has its kernel's, conv2/kernel."""
    whole = re.sub(rf"/({'|'.join(FACTORS)})(?=/kernel$)", "", name)
    return bool(re.fullmatch(pattern, name) or re.fullmatch(pattern, whole))


def _sizes(kernel: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes magnitudes for `keep_largest`. They are inf for a kernel of zeros: it is new, as some heads are."""
    return jnp.where(mask, jnp.where(jnp.any(kernel), jnp.abs(kernel), jnp.inf), -1)


def _replaced(tree: Any, by_name: dict[str, jax.Array]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: by_name.get(path_name(path), leaf), tree)

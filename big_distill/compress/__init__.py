"""How a student's kernels are represented while they train: pruned, or as a few shared values.

A representation is a pair (params, aux): what is trained, and how it becomes the dense kernels that the network
computes with, which `state.materialize` makes of the two. All else (loss, optimiser, checkpoints) is as in any run.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp

from big_distill.compress import pruning, sharing
from big_distill.config import CompressConfig, Config, nearest
from big_distill.errors import ConfigError
from big_distill.state import Aux, Params, path_name


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is done to each kernel, by its path.

    keep_zeros: whether the zeros of the network that the run starts from are pruned weights, which stay what they are.
    sparsity: share of its weights that are zero in the end; under the scope 'global' that of all of them together.
    bits: of a code; 0 where weights are not shared.
    """

    config: CompressConfig
    total_steps: int
    seed: int
    keep_zeros: bool
    sparsity: dict[str, float]
    bits: dict[str, int]

    def encode(self, params: Params) -> tuple[Params, Aux]:
        """Dense parameters as this run begins with them.

        Returns:
          (what is trained, what `materialize` needs to know of it), both with the paths of `params`.
        """
        kernels = self._kernels(params)
        if not kernels:
            return params, {}
        masks = {name: (kernel != 0) | (not self.keep_zeros) for name, kernel in kernels.items()}
        pruned = self._masks(kernels, masks, jnp.int32(self.total_steps if self.bits else 0))
        if not self.bits:
            return params, pruned
        trained, aux = {}, {}
        for index, (name, kernel) in enumerate(kernels.items()):
            key = jax.random.fold_in(jax.random.key(self.seed), index)
            kernel = jnp.where(pruned[name], kernel, 0)
            trained[name], aux[name] = sharing.share(kernel, self.bits[name], self.config.centroids, key)
        return _replaced(params, trained), aux

    def refresh(self, params: Params, aux: Aux, step: jax.Array) -> Aux:
        """The masks after `step` updates: those of before, or smaller ones where the schedule says so."""
        kernels = self._kernels(params)
        due = pruning.is_due(step, *self._span, self.config.prune_every_steps)
        return jax.lax.cond(due, lambda: self._masks(kernels, aux, step), lambda: aux)

    @property
    def prunes(self) -> bool:
        """Whether there are masks, which `refresh` may change."""
        return bool(self.sparsity) and not self.bits

    @property
    def done_at(self) -> int:
        """The step from which on the student is as sparse as it will be."""
        return self._span[1] if self.prunes else 0

    @property
    def _span(self) -> tuple[int, int]:
        """First and last step of pruning."""
        begin, end = (round(share * self.total_steps) for share in (self.config.prune_begin, self.config.prune_end))
        return begin, end

    def _masks(self, kernels: dict[str, jax.Array], masks: Aux, step: jax.Array) -> Aux:
        """Masks for the sparsity of a step; what was zero stays zero."""
        progress = pruning.cubic(step, *self._span)
        sizes = {name: _sizes(kernel, masks[name]) for name, kernel in kernels.items()}
        if self.config.scope == "global":
            return pruning.keep_largest(sizes, self.config.sparsity, progress)
        return {
            name: pruning.keep_largest({name: size}, self.sparsity[name], progress)[name]
            for name, size in sizes.items()
        }

    def _kernels(self, params: Params) -> dict[str, jax.Array]:
        named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        return {name: named[name] for name in self.sparsity}


def plan(run: Config, abstract: Params) -> Plan:
    """What a config asks of its student's parameters.

    Args:
      run: resolved.
      abstract: the dense parameters, or their shapes.

    Raises:
      ConfigError: a pattern that matches nothing.
    """
    config = run.compress
    keep_zeros = bool(run.init_from or run.init_config) and not run.init_fresh
    if not (config.sparsity or config.layer_sparsity or config.bits):
        return Plan(config, run.total_steps, run.seed, keep_zeros, {}, {})
    names = [path_name(path) for path, leaf in jax.tree_util.tree_leaves_with_path(abstract) if leaf.ndim > 1]
    chosen = [name for name in names if re.fullmatch(config.layers, name)]
    if not chosen:
        raise ConfigError(f"config.compress.layers={config.layers!r} matches no kernel{nearest(config.layers, names)}")
    sparsity = _by_layer("layer_sparsity", config.layer_sparsity, config.sparsity, chosen)
    bits = _by_layer("layer_bits", config.layer_bits, config.bits, chosen) if config.bits else {}
    rounded = {name: round(value) for name, value in bits.items()}
    return Plan(config, run.total_steps, run.seed, keep_zeros, sparsity, rounded)


def _sizes(kernel: jax.Array, mask: jax.Array) -> jax.Array:
    """Magnitudes for `keep_largest`; a kernel that is all zeros, as some heads begin, is new and not small."""
    return jnp.where(mask, jnp.where(jnp.any(kernel), jnp.abs(kernel), jnp.inf), -1)


def _by_layer(field: str, rules: tuple[str, ...], otherwise: float, names: list[str]) -> dict[str, float]:
    """For each name the value of the first rule, such as fc1/kernel=0.9, whose pattern matches it."""
    parsed = [rule.rpartition("=")[::2] for rule in rules]
    for pattern, _ in parsed:
        if not any(re.fullmatch(pattern, name) for name in names):
            raise ConfigError(f"config.compress.{field}: {pattern!r} matches no kernel{nearest(pattern, names)}")
    return {
        name: next((float(value) for pattern, value in parsed if re.fullmatch(pattern, name)), otherwise)
        for name in names
    }


def _replaced(tree: Any, by_name: dict[str, jax.Array]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: by_name.get(path_name(path), leaf), tree)

"""Prunes weights by magnitude: chooses which stay, and when the others go."""

from __future__ import annotations

import jax
import jax.numpy as jnp

LEAST_SHARE = 0.1
"""Every layer keeps this part of the common share: a layer without weights would cut the network in two."""


def progress(schedule: str, step: jax.Array, begin: int, end: int, sparsity: float) -> jax.Array:
    """Computes the part of the final sparsity that is due after a step, in [0, 1]; all at once if begin is end.

    Let t = (step - begin) / (end - begin); the sparsity begins at 0. 'cubic' is 1 - (1 - t)^3 (Zhu & Gupta 2017, "To
    prune, or not to prune", arXiv 1710.01878, equation 1). 'iterative' removes the same share of what is left each time
    (Han et al. 2015, arXiv 1506.02626): (1 - (1 - sparsity)^t) / sparsity.
    """
    if begin == end:
        return jnp.where(step >= end, 1.0, 0.0)
    left = 1 - jnp.clip((step - begin) / (end - begin), 0, 1)
    if schedule == "cubic":
        return 1 - left**3
    return (1 - (1 - sparsity) ** (1 - left)) / max(sparsity, 1e-12)


def is_due(step: jax.Array, begin: int, end: int, every: int) -> jax.Array:
    """Returns True if weights are pruned after a step: every `every` steps from `begin` to `end`, and at `end`."""
    return (step == end) | ((step >= begin) & (step < end) & ((step - begin) % every == 0))


def keep_largest(sizes: dict[str, jax.Array], sparsity: float, progress: jax.Array) -> dict[str, jax.Array]:
    """Computes masks that drop the smallest of all the weights together, while every layer keeps its `LEAST_SHARE`.

    Args:
      sizes: magnitudes; -1 for a weight that is pruned already, which counts as the smallest and never comes back, inf
        for one that must not go.
      sparsity: final sparsity: of N weights exactly round(sparsity N) are zero then, or those that were before.
      progress: float32 [], the part of it that is due, in [0, 1].
    """
    flat = jnp.concatenate([_spared(size.reshape(-1), sparsity) for size in sizes.values()])
    final = round(sparsity * flat.size)  # float32 cannot count above 2^24
    num_zeros = jnp.where(progress < 1, jnp.round(progress * final).astype(jnp.int32), final)
    order = jnp.argsort(flat)  # stable: the first of equal weights goes first
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(flat.size, dtype=order.dtype))
    kept = ((rank >= num_zeros) | jnp.isinf(flat)) & (flat >= 0)
    masks, start = {}, 0
    for name, size in sizes.items():
        masks[name] = kept[start : start + size.size].reshape(size.shape)
        start += size.size
    return masks


def _spared(sizes: jax.Array, sparsity: float) -> jax.Array:
    """Sets the largest sizes of a layer to inf, as many as it must keep."""
    least = round(LEAST_SHARE * (1 - sparsity) * sizes.size)
    if least == 0:
        return sizes
    largest = jax.lax.top_k(sizes, least)[1]
    return sizes.at[largest].set(jnp.where(sizes[largest] < 0, -1, jnp.inf))


def keep_of_each(sizes: jax.Array, kept: int, group: int) -> jax.Array:
    """Computes a mask that keeps the `kept` largest of every `group` inputs of a kernel [..., C, F]; group divides C.

    Mishra et al. 2021, "Accelerating sparse deep neural networks" (arXiv 2104.08378), keep 2 of 4.
    """
    *window, inputs, outputs = sizes.shape
    grouped = sizes.reshape(*window, inputs // group, group, outputs)
    order = jnp.argsort(-grouped, axis=-2)  # stable: the first of equal weights stays
    return (jnp.argsort(order, axis=-2) < kept).reshape(sizes.shape) & (sizes >= 0)

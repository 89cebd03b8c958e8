"""Magnitude pruning: which weights stay, and when."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cubic(step: jax.Array, begin: int, end: int) -> jax.Array:
    """How much of the final sparsity is due after a step: 1 - (1 - (step - begin) / (end - begin))^3, in [0, 1].

    Zhu & Gupta 2017, "To prune, or not to prune" (arXiv 1710.01878), equation 1, from a sparsity of 0. All at once if
    begin is end.
    """
    if begin == end:
        return jnp.where(step >= end, 1.0, 0.0)
    done = jnp.clip((step - begin) / (end - begin), 0, 1)
    return 1 - (1 - done) ** 3


def is_due(step: jax.Array, begin: int, end: int, every: int) -> jax.Array:
    """Whether weights are pruned after a step: every so often between the two, and at the end."""
    return (step == end) | ((step >= begin) & (step < end) & ((step - begin) % every == 0))


def keep_largest(sizes: dict[str, jax.Array], sparsity: float, progress: jax.Array) -> dict[str, jax.Array]:
    """Masks, False for the smallest of all the weights together.

    Args:
      sizes: magnitudes; -1 for a weight that is pruned already, which counts as the smallest and never comes back, inf
        for one that must not go.
      sparsity: the final one: of N weights exactly round(sparsity N) are zero then, or those that were before.
      progress: float32 [], how much of it is due, in [0, 1].
    """
    flat = jnp.concatenate([size.reshape(-1) for size in sizes.values()])
    final = round(sparsity * flat.size)  # float32 cannot count above 2^24
    num_zeros = jnp.where(progress < 1, jnp.round(progress * final).astype(jnp.int32), final)
    order = jnp.argsort(flat)  # stable: of equal ones the first goes first
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(flat.size, dtype=order.dtype))
    kept = ((rank >= num_zeros) | jnp.isinf(flat)) & (flat >= 0)
    masks, start = {}, 0
    for name, size in sizes.items():
        masks[name] = kept[start : start + size.size].reshape(size.shape)
        start += size.size
    return masks

"""Makes the views of a batch on the device: mixup, targets mixed alike, and each network's size and normalisation.

A view is float32 [B, S, S, C] in [0, 1]. The four regimes of Beyer et al. 2022 (section 3.2) differ in the pixels
(fixed and independent give the teacher its own) and in mixup (function matching alone has it). On the device they are
one code path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from big_distill.state import Batch, Card


def make_views(batch: Batch, num_classes: int) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Makes the views of a global batch.

    Mixup blends an example with its partner, the batch rolled by one. The whole batch has one lambda, and pixels and
    labels are blended alike.

    Returns:
      (student view [B, S, S, C], teacher view of the same shape, targets float32 [B, K] or None without labels). Under
      `consistent` and `function_matching` the two views are the same array.
    """
    lam = batch["lam"]
    view = mixup(batch["pixels"], lam, to_unit)
    teacher_view = to_unit(batch["teacher_pixels"]) if "teacher_pixels" in batch else view
    targets = mixup(jax.nn.one_hot(batch["label"], num_classes), lam) if "label" in batch else None
    return view, teacher_view, targets


def mixup(x: jax.Array, lam: jax.Array, to_float: Callable[[jax.Array], jax.Array] = lambda x: x) -> jax.Array:
    """Computes lam x + (1 - lam) roll(x, 1) along the first axis; at lam = 1 it is exactly x.

    The formula is from Zhang et al. 2018 (arXiv 1710.09412). `x` is rolled, and sent to a neighbouring device, before
    `to_float`: pixels as bytes.
    """
    partner = to_float(jnp.roll(x, 1, axis=0))
    x = to_float(x)
    return x + (1 - lam) * (partner - x)


def for_network(view: jax.Array, card: Card) -> jax.Array:
    """Resizes a view down to a network's own size and normalises it as its card says: (x - mean) / std."""
    size = card.image_size
    if view.shape[1] != size:
        shape = (view.shape[0], size, size, view.shape[3])
        view = jax.image.resize(view, shape, "linear")
    return (view - _per_channel(card.mean)) / _per_channel(card.std)


def _per_channel(values: Sequence[float]) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


def to_unit(pixels: jax.Array) -> jax.Array:
    """Maps uint8 in [0, 255] to float32 in [0, 1]."""
    return pixels.astype(jnp.float32) / 255


def view_hash(view: jax.Array) -> jax.Array:
    """Hashes every bit of a view and its position to uint32 []: sum_i (2 i + 1) bits_i, modulo 2^32."""
    bits = jax.lax.bitcast_convert_type(view, jnp.uint32).reshape(-1)
    return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)

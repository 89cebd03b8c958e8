"""Crops on the device: makes the batch that draws choose from a split that lives there."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from big_distill.config import PAD_GREY
from big_distill.state import Batch, Resident


def from_resident(resident: Resident, batch: Batch, size: int) -> Batch:
    """Makes the batch that its draws choose from a split on the device: pixels of side `size`, and labels."""
    made = {name: batch[name] for name in ("step", "lam")}
    for branch in ("", "teacher_"):
        if f"{branch}id" not in batch:
            continue
        ids, box, flip = batch[f"{branch}id"], batch.get(f"{branch}box"), batch.get(f"{branch}flip")
        if box is not None:
            sizes = None if resident.sizes is None else resident.sizes[ids]
            pixels = crop_resize(resident.pixels, resident.shape, ids, box, size, flip, sizes)
        else:
            pixels = _rows(resident.central, ids).reshape(len(ids), size, size, -1)
            if flip is not None:
                pixels = jnp.where(flip[:, None, None, None], pixels[:, :, ::-1], pixels)
        made[f"{branch}pixels"] = pixels
    return made if resident.label is None else made | {"label": resident.label[batch["id"]]}


_LARGE = 1 << 14
"""Bytes of an image above which a TPU picks one after the other: at once, it would copy the whole split first."""


def _rows(images: jax.Array, ids: jax.Array) -> jax.Array:
    """Picks images[ids]."""

    def at_once(images: jax.Array, ids: jax.Array) -> jax.Array:
        return images[ids]

    def one_by_one(images: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.lax.map(lambda index: jax.lax.dynamic_slice_in_dim(images, index, 1)[0], ids)

    on_tpu = one_by_one if images.shape[1] > _LARGE else at_once
    return jax.lax.platform_dependent(images, ids, tpu=on_tpu, default=at_once)


def crop_resize(
    images: jax.Array,
    shape: tuple[int, int, int],
    ids: jax.Array,
    boxes: jax.Array,
    size: int,
    flip: jax.Array | None = None,
    sizes: jax.Array | None = None,
) -> jax.Array:
    """Crops and resizes as `data.resample.crop_resize` does, to the same grey levels within one.

    A CPU gathers pixels. Other devices have no fast gather, and multiply by two small dense matrices an image.

    Args:
      images: uint8 [N, H * W * C].
      shape: (H, W, C).
      ids: int32 [B], the positions of the images to crop.
      boxes: int32 [B, 4]: top, left, height, width in whole pixels.
      size: side S of the views.
      flip: bool [B], True for a view to mirror left to right.
      sizes: int32 [B, 2], height and width of the images; None if no box reaches beyond its image.

    Returns:
      uint8 [B, S, S, C].
    """
    y, x = _taps(boxes[:, 0], boxes[:, 2], size), _taps(boxes[:, 1], boxes[:, 3], size)
    if sizes is not None:
        seen_y, seen_x = (_inside(boxes[:, i], boxes[:, i + 2], sizes[:, i], size) for i in (0, 1))
        seen_x = seen_x if flip is None else jnp.where(flip[:, None], seen_x[:, ::-1], seen_x)
        y, x = _within(y, sizes[:, 0]), _within(x, sizes[:, 1])
    if flip is not None:
        x = _Taps(*(jnp.where(flip[:, None], taps[:, ::-1], taps) for taps in x))

    def gathered(images: jax.Array, ids: jax.Array, y: _Taps, x: _Taps) -> jax.Array:
        images = images.reshape(-1, *shape)

        def at(rows: jax.Array, columns: jax.Array) -> jax.Array:
            return images[ids[:, None, None], rows[:, :, None], columns[:, None, :]].astype(jnp.float32)

        above, below = (_lerp(at(rows, x.lower), at(rows, x.upper), x.weight[:, None, :, None]) for rows in y[:2])
        return _lerp(above, below, y.weight[:, :, None, None])

    def multiplied(images: jax.Array, ids: jax.Array, y: _Taps, x: _Taps) -> jax.Array:
        own = images[ids].reshape(-1, *shape).astype(jnp.float32)
        own = jnp.einsum("bsh,bhwc->bswc", _matrix(y, shape[0]), own, precision="highest")
        return jnp.einsum("btw,bswc->bstc", _matrix(x, shape[1]), own, precision="highest")

    def one_by_one(images: jax.Array, ids: jax.Array, y: _Taps, x: _Taps) -> jax.Array:
        def crop(one: tuple[jax.Array, _Taps, _Taps]) -> jax.Array:
            image = jax.lax.dynamic_slice_in_dim(images, one[0], 1)
            return multiplied(image, jnp.zeros(1, jnp.int32), *jax.tree.map(lambda taps: taps[None], one[1:]))[0]

        return jax.lax.map(crop, (ids, y, x))

    on_tpu = one_by_one if images.shape[1] > _LARGE else multiplied
    sampled = jax.lax.platform_dependent(images, ids, y, x, cpu=gathered, tpu=on_tpu, default=multiplied)
    views = jnp.floor(sampled + 0.5).astype(jnp.uint8)
    return views if sizes is None else jnp.where((seen_y[:, :, None] & seen_x[:, None])[..., None], views, PAD_GREY)


class _Taps(NamedTuple):
    """Holds the two source pixels of every output pixel along one axis, and the weight of the second, each [B, S]."""

    lower: jax.Array
    upper: jax.Array
    weight: jax.Array


def _taps(first: jax.Array, length: jax.Array, size: int) -> _Taps:
    """Computes the taps that resize the `length` pixels from `first` on, both int32 [B], to `size` pixels."""
    scale = length.astype(jnp.float32) / size
    position = (jnp.arange(size) + 0.5) * scale[:, None] - 0.5
    floor = jnp.floor(position)
    lower = jnp.maximum(floor, 0).astype(jnp.int32)
    upper = jnp.minimum(jnp.ceil(position).astype(jnp.int32), length[:, None] - 1)
    return _Taps(first[:, None] + lower, first[:, None] + upper, position - floor)


def _inside(first: jax.Array, length: jax.Array, extent: jax.Array, size: int) -> jax.Array:
    """Returns bool [B, size]: True where an output pixel's centre lies within the `extent` pixels of its image."""
    twice = (2 * jnp.arange(size) + 1) * length[:, None] + 2 * size * first[:, None]  # in pixels / (2 size): exact
    return (twice >= 0) & (twice < 2 * size * extent[:, None])


def _within(taps: _Taps, extent: jax.Array) -> _Taps:
    """Repeats the edges of an image beyond it."""
    lower, upper = (jnp.clip(pixels, 0, extent[:, None] - 1) for pixels in taps[:2])
    return _Taps(lower, upper, taps.weight)


def _matrix(taps: _Taps, length: int) -> jax.Array:
    """Builds the matrices of a resize, float32 [B, S, length]."""
    lower, upper = (jax.nn.one_hot(taps, length) for taps in taps[:2])
    return _lerp(lower, upper, taps.weight[:, :, None])


def _lerp(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    return a + (b - a) * weight

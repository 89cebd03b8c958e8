"""Resamples images of any size to square uint8 views. Crop, resize and flip are one gather."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from big_distill.config import FITS, PAD_GREY
from big_distill.data.decode import Decoded

# A resize works on so many float32 values at a time. They stay in a core's cache, which makes it 2-4x faster.
_CHUNK_VALUES = 400_000
_SINGLE_VALUES = 20_000  # views of more values are made one by one: 1.7x faster at 128 x 128 x 3
_GROUP_BYTES = 1 << 25  # size of the decoded images that `pack_groups` puts together


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Holds uint8 images of any size, or parts of them, end to end in one buffer.

    pixels: uint8 [total, C].
    offsets: int64 [N], index of each image's first pixel.
    heights, widths: int64 [N], sizes of the whole images.
    boxes: int64 [N, 4], part of each that is here: top, left, height, width in blocks of `reductions` pixels a side.
    reductions: int64 [N].
    """

    pixels: np.ndarray
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    boxes: np.ndarray
    reductions: np.ndarray

    @classmethod
    def pack(cls, images: Sequence[np.ndarray | Decoded]) -> Ragged:
        """Copies images into one buffer. Arrays are whole images, uint8 [H, W, C]. A single image is not copied."""
        decoded = [image if isinstance(image, Decoded) else Decoded(image, *image.shape[:2]) for image in images]
        heights, widths, reductions = np.array([image[1:4] for image in decoded], np.int64).T
        boxes = np.array([(image.top, image.left, *image.pixels.shape[:2]) for image in decoded], np.int64)
        areas, channels = boxes[:, 2] * boxes[:, 3], decoded[0].pixels.shape[2]
        offsets = np.cumsum(areas) - areas
        if len(decoded) == 1:
            pixels = decoded[0].pixels.reshape(-1, channels)
        else:
            pixels = np.empty((areas.sum(), channels), np.uint8)
            for image, start, area in zip(decoded, offsets.tolist(), areas.tolist(), strict=True):
                pixels[start : start + area].reshape(image.pixels.shape)[...] = image.pixels
        return cls(pixels, offsets, heights, widths, boxes, reductions)

    @property
    def padded_shape(self) -> tuple[int, int, int, int]:
        """Returns (N, H, W, C), with the largest height and width. Every image must be whole."""
        return len(self.offsets), int(self.heights.max()), int(self.widths.max()), self.pixels.shape[1]

    def padded(self) -> np.ndarray:
        """Returns uint8 [*padded_shape], with zeros below and to the right of smaller images."""
        padded = np.zeros(self.padded_shape, np.uint8)
        for image, start, height, width in zip(padded, self.offsets, self.heights, self.widths, strict=True):
            image[:height, :width] = self.pixels[start : start + height * width].reshape(height, width, -1)
        return padded


def pack_groups(examples: Iterable[tuple[Decoded, int]]) -> Iterator[tuple[Ragged, list[int]]]:
    """Packs numbered images, some megabytes at a time. Small ones then need few calls, and large ones little memory."""
    images: list[Decoded] = []
    numbers: list[int] = []
    size = 0
    for image, number in examples:
        images.append(image)
        numbers.append(number)
        size += image.pixels.nbytes
        if size >= _GROUP_BYTES:
            yield Ragged.pack(images), numbers
            images, numbers, size = [], [], 0
    if images:
        yield Ragged.pack(images), numbers


@dataclasses.dataclass(frozen=True)
class _Taps:
    """Holds the two source pixels of every output pixel along one axis, and the weight of the second, each [B, S].

    inside: bool [B, S], False where the centre of the output pixel lies beyond the image.
    """

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray
    inside: np.ndarray

    def __getitem__(self, part: slice | int) -> _Taps:
        return _Taps(self.lower[part], self.upper[part], self.weight[part], self.inside[part])

    def since(self, start: np.ndarray) -> _Taps:
        """Returns the same source pixels, counted from `start` [B] on."""
        return _Taps(self.lower - start[:, None], self.upper - start[:, None], self.weight, self.inside)

    def by_channel(self, channels: int) -> _Taps:
        """Returns the taps [B, S C] of pixels whose channels are counted one by one."""
        lower, upper = ((a[..., None] * channels + np.arange(channels)) for a in (self.lower, self.upper))
        shape = len(lower), -1
        return _Taps(lower.reshape(shape), upper.reshape(shape), np.repeat(self.weight, channels, axis=1), self.inside)


def crop_resize(
    images: Ragged, ids: np.ndarray, boxes: np.ndarray, size: int, flip: np.ndarray | None = None
) -> np.ndarray:
    """Crops and resizes bilinearly, with half-pixel centres and no antialiasing.

    The numbers are those of `tf.image.resize` on the crop, rounded half up. A reduced image gives the blocks that lie
    within the box, in the places that they have in the whole.

    Args:
      images: N images.
      ids: int [B], indices of the images.
      boxes: int [B, 4]: top, left, height, width in whole pixels of the whole image. Nothing outside of its box enters
        a view. The share of a box that lies within the image is there, and holds a block on each axis. A pixel of the
        view whose centre lies beyond the image is `PAD_GREY`.
      size: side S of the views.
      flip: bool [B], True to mirror a view left to right.

    Returns:
      uint8 [B, S, S, C].
    """
    reductions = images.reductions[ids]
    y = _taps(boxes[:, 2], np.full(len(ids), size), 0, size, images.heights[ids], boxes[:, 0], reductions)
    x = _taps(boxes[:, 3], np.full(len(ids), size), 0, size, images.widths[ids], boxes[:, 1], reductions)
    if flip is not None:
        x = _Taps(*(np.where(flip[:, None], a[:, ::-1], a) for a in (x.lower, x.upper, x.weight, x.inside)))
    return _sample(images, ids, y, x)


def central_view(images: Ragged, ids: np.ndarray, resize: int, size: int, fit: str = FITS[0]) -> np.ndarray:
    """Resizes, then cuts or pads to the central square. Evaluation and a fixed teacher see this view.

    `fit` is that of `config.view`. The shorter side (crop), both sides (squash) or the longer side (pad) become
    `resize` pixels. The other side is rounded to the nearest pixel (half to even). The square's corner is rounded
    towards that of the image. Only what the square shows is computed. Beside the image it is `PAD_GREY`.

    Args:
      images: N whole images.
      ids: int [B], indices of the images.
      resize: side after resizing, at least `size`, the side S of the views.

    Returns:
      uint8 [B, S, S, C], the same numbers as `crop_resize` of the whole image followed by a crop.
    """
    heights, widths = images.heights[ids], images.widths[ids]
    shorter, longer = np.minimum(heights, widths), np.maximum(heights, widths)
    y, x = (
        _taps(length, resized, np.trunc((resized - size) / 2).astype(np.int64), size, length)
        for length in (heights, widths)
        for whole in [{"crop": shorter, "squash": length, "pad": longer}[fit]]
        for resized in [np.maximum(1, np.rint(length * resize / whole)).astype(np.int64)]
    )
    return _sample(images, ids, y, x)


def _taps(
    length: np.ndarray,
    resized: np.ndarray,
    first: np.ndarray | int,
    size: int,
    extent: np.ndarray,
    start: np.ndarray | int = 0,
    reduction: np.ndarray | int = 1,
) -> _Taps:
    """Finds the taps of output pixels `first` to `first + size`, if `length` pixels from `start` on become `resized`.

    It computes them as TensorFlow does. Every argument but `size` is [B]. Source pixels count in blocks of `reduction`,
    and the image has `extent` pixels, not blocks.
    """
    length, resized, first, extent, start, reduction = (
        a[:, None] for a in np.broadcast_arrays(length, resized, first, extent, start, reduction)
    )
    scale = length.astype(np.float32) / resized.astype(np.float32)
    centre = (first + np.arange(size)).astype(np.float32) + np.float32(0.5)
    block, within = np.divmod(start, reduction)
    position = (centre * scale + within.astype(np.float32)) / reduction.astype(np.float32) - np.float32(0.5)
    floor = np.floor(position)
    least = -(-np.maximum(start, 0) // reduction)
    most = np.minimum(start + length, extent) // reduction - 1
    lower = np.maximum(floor.astype(np.int64) + block, least)
    upper = np.minimum(np.ceil(position).astype(np.int64) + block, most)
    twice = (2 * (first + np.arange(size)) + 1) * length + 2 * start * resized  # centre, in pixels / (2 resized): exact
    inside = (twice >= 0) & (twice < 2 * extent * resized)
    return _Taps(np.minimum(lower, most), np.maximum(upper, least), position - floor, inside)


def _sample(images: Ragged, ids: np.ndarray, y: _Taps, x: _Taps) -> np.ndarray:
    views = _sample_inside(images, ids, y, x)
    if not (y.inside.all() and x.inside.all()):
        views[~(y.inside[:, :, None] & x.inside[:, None])] = PAD_GREY
    return views


def _sample_inside(images: Ragged, ids: np.ndarray, y: _Taps, x: _Taps) -> np.ndarray:
    size, channels = y.lower.shape[1], images.pixels.shape[1]
    views = np.empty((len(ids), size, size, channels), np.uint8)
    boxes = images.boxes[ids]
    y, x = y.since(boxes[:, 0]), x.since(boxes[:, 1])
    if size * size * channels > _SINGLE_VALUES:
        x = x.by_channel(channels)
        for i, (start, height, width) in enumerate(zip(images.offsets[ids], boxes[:, 2], boxes[:, 3], strict=True)):
            pixels = images.pixels[start : start + height * width].reshape(height, width * channels)
            views[i] = _sample_one(pixels, y[i], x[i]).reshape(size, size, channels)
        return views
    chunk = max(1, _CHUNK_VALUES // (size * size * channels))
    for start in range(0, len(ids), chunk):
        part = slice(start, start + chunk)
        views[part] = _sample_chunk(images, ids[part], y[part], x[part])
    return views


def _sample_chunk(images: Ragged, ids: np.ndarray, y: _Taps, x: _Taps) -> np.ndarray:
    """Samples along x, in the rows that some output needs (at most 2 S of an image), then along y, a row at a time."""
    size, channels = y.lower.shape[1], images.pixels.shape[1]
    _, _, heights, widths = images.boxes[ids].T
    first = (np.cumsum(heights) - heights)[:, None]  # first row of each image, all rows of the chunk counted through
    needed = np.zeros(heights.sum(), bool)
    needed[first + y.lower] = True
    needed[first + y.upper] = True
    place = np.cumsum(needed) - 1
    rows = np.flatnonzero(needed)
    image = np.searchsorted(first[:, 0], rows, side="right") - 1
    origin = (images.offsets[ids][image] + (rows - first[image, 0]) * widths[image])[:, None]

    # The default mode checks all indices through a buffer. They are in range, so mode='clip' saves the time.
    left = np.take(images.pixels, origin + x.lower[image], axis=0, mode="clip").astype(np.float32)
    right = np.take(images.pixels, origin + x.upper[image], axis=0, mode="clip").astype(np.float32)
    left, right = left.reshape(-1, size * channels), right.reshape(-1, size * channels)
    _lerp(left, right, np.repeat(x.weight, channels, axis=1)[image])
    above = np.take(left, place[first + y.lower], axis=0, mode="clip")
    below = np.take(left, place[first + y.upper], axis=0, mode="clip")
    _lerp(above, below, y.weight[:, :, None])
    above += np.float32(0.5)
    return above.astype(np.uint8).reshape(-1, size, size, channels)


def _sample_one(pixels: np.ndarray, y: _Taps, x: _Taps) -> np.ndarray:
    """Samples one image [H, W C] to [S, S C] in the same way: a call more per image, but no index of every pixel."""
    needed = np.zeros(len(pixels), bool)
    needed[y.lower] = True
    needed[y.upper] = True
    place = np.cumsum(needed) - 1
    used = pixels[needed]
    left = np.take(used, x.lower, axis=1, mode="clip").astype(np.float32)
    right = np.take(used, x.upper, axis=1, mode="clip").astype(np.float32)
    _lerp(left, right, x.weight)
    above = np.take(left, place[y.lower], axis=0, mode="clip")
    below = np.take(left, place[y.upper], axis=0, mode="clip")
    _lerp(above, below, y.weight[:, None])
    above += np.float32(0.5)
    return above.astype(np.uint8)


def _lerp(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> None:
    """Writes `a + (b - a) * weight` into `a`, and overwrites `b`."""
    b -= a
    b *= weight
    a += b

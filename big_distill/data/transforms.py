"""From bytes to square uint8 views: decoding under one fixed policy, then crop, resize and flip in one gather."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Float32 values that a resize works on at a time: few enough to stay in a core's cache, which is worth 2-4x.
_CHUNK_VALUES = 400_000
_GROUP_BYTES = 1 << 25  # decoded images that are transformed together when they are read batch by batch
# Of what Pillow opens, what it decodes itself: an EPS file, whatever its name, it hands to Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class BadImage(Exception):
    """Bytes or an array that cannot be read as an image; the message says why."""


def decode(data: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Reads one image under one policy, whatever kind of JPEG, PNG, GIF, WebP, BMP, TIFF or PPM it is.

    The first frame of an animation; turned as its EXIF orientation says; transparent pixels over white; 16-bit grey
    scaled to 8 bits; CMYK, palettes and other colour spaces through RGB; grey repeated into three channels, colour into
    grey as ITU-R 601 luma.

    Args:
      data: an encoded image, or uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (the last with alpha).
      channels: 3 or 1.

    Returns:
      uint8 [H, W, channels].

    Raises:
      BadImage: damaged, truncated or empty data, or a decompression bomb: more than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    if isinstance(data, np.ndarray):
        return _from_array(data, channels)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                raise BadImage(f"{image.width} x {image.height} px is more than PIL.Image.MAX_IMAGE_PIXELS={limit}")
            ImageOps.exif_transpose(image, in_place=True)
            return _to_channels(image, channels)
    except BadImage:
        raise
    except Exception as error:  # on damaged bytes Pillow's readers raise almost anything
        if not data:
            raise BadImage("no bytes") from error
        if isinstance(error, UnidentifiedImageError):
            raise BadImage(f"not an image of {', '.join(_FORMATS)}") from error
        raise BadImage(f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def _from_array(array: np.ndarray, channels: int) -> np.ndarray:
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or not array.size:
        raise BadImage(f"array of {array.dtype} {list(array.shape)}: expected uint8 [H, W, 1, 3 or 4]")
    if array.shape[2] == channels:
        return array
    return _to_channels(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array), channels)


def _to_channels(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES:
        grey = np.clip(np.asarray(image).astype(np.int32, copy=False), 0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # 257 is odd: no value lies half-way
    elif image.mode == "F":
        raise BadImage("floating-point pixels have no known range")
    elif image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)


@dataclasses.dataclass(frozen=True)
class Ragged:
    """uint8 images of any sizes, end to end in one buffer.

    pixels: uint8 [total, C].
    offsets: int64 [N], where each image's first pixel is.
    heights, widths: int64 [N].
    """

    pixels: np.ndarray
    offsets: np.ndarray
    heights: np.ndarray
    widths: np.ndarray

    @classmethod
    def pack(cls, images: Sequence[np.ndarray]) -> Ragged:
        """Copies images, uint8 [H, W, C] each, into one buffer; a single one is not copied."""
        heights, widths = np.array([image.shape[:2] for image in images], np.int64).T
        flat = [image.reshape(-1, image.shape[2]) for image in images]
        areas = heights * widths
        return cls(flat[0] if len(flat) == 1 else np.concatenate(flat), np.cumsum(areas) - areas, heights, widths)

    def padded(self) -> np.ndarray:
        """uint8 [N, H, W, C] of the largest height and width, zeros below and to the right of smaller images."""
        padded = np.zeros((len(self.offsets), self.heights.max(), self.widths.max(), self.pixels.shape[1]), np.uint8)
        for image, start, height, width in zip(padded, self.offsets, self.heights, self.widths, strict=True):
            image[:height, :width] = self.pixels[start : start + height * width].reshape(height, width, -1)
        return padded


def pack_groups(examples: Iterable[tuple[np.ndarray, int]]) -> Iterator[tuple[Ragged, list[int]]]:
    """Packs images, each with a number, some megabytes at a time: few calls for small ones, little memory for large."""
    images: list[np.ndarray] = []
    numbers: list[int] = []
    size = 0
    for image, number in examples:
        images.append(image)
        numbers.append(number)
        size += image.nbytes
        if size >= _GROUP_BYTES:
            yield Ragged.pack(images), numbers
            images, numbers, size = [], [], 0
    if images:
        yield Ragged.pack(images), numbers


@dataclasses.dataclass(frozen=True)
class _Taps:
    """Along one axis, for every output pixel: its two source pixels and the weight of the second, each [B, S]."""

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray

    def __getitem__(self, part: slice) -> _Taps:
        return _Taps(self.lower[part], self.upper[part], self.weight[part])


def crop_resize(
    images: Ragged, ids: np.ndarray, boxes: np.ndarray, size: int, flip: np.ndarray | None = None
) -> np.ndarray:
    """Crops and resizes: bilinear with half-pixel centres and no antialiasing.

    The numbers are those of `tf.image.resize` on the crop, rounded half up.

    Args:
      images: N images.
      ids: int [B], which of them.
      boxes: int [B, 4]: top, left, height, width in whole pixels. Nothing outside of its box enters a view.
      size: side S of the views.
      flip: bool [B], which views to mirror left to right.

    Returns:
      uint8 [B, S, S, C].
    """
    y = _taps(boxes[:, 2], np.full(len(ids), size), np.zeros(len(ids), np.int64), size)
    x = _taps(boxes[:, 3], np.full(len(ids), size), np.zeros(len(ids), np.int64), size)
    if flip is not None:
        x = _Taps(*(np.where(flip[:, None], a[:, ::-1], a) for a in (x.lower, x.upper, x.weight)))
    y = _Taps(y.lower + boxes[:, :1], y.upper + boxes[:, :1], y.weight)
    x = _Taps(x.lower + boxes[:, 1:2], x.upper + boxes[:, 1:2], x.weight)
    return _sample(images, ids, y, x)


def central_view(images: Ragged, ids: np.ndarray, resize: int, size: int) -> np.ndarray:
    """Resizes the shorter side to `resize`, then crops the centre: the view of evaluation and of a fixed teacher.

    The longer side is rounded to the nearest pixel (half to even), the crop's corner down. Only what the crop shows is
    computed.

    Args:
      images: N images.
      ids: int [B], which of them.
      resize: shorter side after resizing, at least `size`.
      size: side S of the views.

    Returns:
      uint8 [B, S, S, C], the same numbers as `crop_resize` of the whole image followed by a crop.
    """
    heights, widths = images.heights[ids], images.widths[ids]
    shorter = np.minimum(heights, widths)
    y, x = (
        _taps(length, resized, (resized - size) // 2, size)
        for length in (heights, widths)
        for resized in [np.rint(length * resize / shorter).astype(np.int64)]
    )
    return _sample(images, ids, y, x)


def _taps(length: np.ndarray, resized: np.ndarray, first: np.ndarray, size: int) -> _Taps:
    """Of `length` pixels resized to `resized` ones, those from `first` on; all [B]. Float32, as TensorFlow's."""
    scale = length.astype(np.float32) / resized.astype(np.float32)
    centre = (first[:, None] + np.arange(size)).astype(np.float32) + np.float32(0.5)
    position = centre * scale[:, None] - np.float32(0.5)
    floor = np.floor(position)
    lower = np.maximum(floor, 0).astype(np.int64)
    upper = np.minimum(np.ceil(position).astype(np.int64), length[:, None] - 1)
    return _Taps(lower, upper, position - floor)


def _sample(images: Ragged, ids: np.ndarray, y: _Taps, x: _Taps) -> np.ndarray:
    size, channels = y.lower.shape[1], images.pixels.shape[1]
    views = np.empty((len(ids), size, size, channels), np.uint8)
    chunk = max(1, _CHUNK_VALUES // (size * size * channels))
    for start in range(0, len(ids), chunk):
        part = slice(start, start + chunk)
        views[part] = _sample_chunk(images, ids[part], y[part], x[part])
    return views


def _sample_chunk(images: Ragged, ids: np.ndarray, y: _Taps, x: _Taps) -> np.ndarray:
    """First along x, in the rows that some output needs (at most 2 S of an image), then along y, a row at a time."""
    size, channels = y.lower.shape[1], images.pixels.shape[1]
    heights = images.heights[ids]
    first = (np.cumsum(heights) - heights)[:, None]  # the rows of the chunk's images, counted through
    needed = np.zeros(heights.sum(), bool)
    needed[first + y.lower] = True
    needed[first + y.upper] = True
    place = np.cumsum(needed) - 1
    rows = np.flatnonzero(needed)
    image = np.searchsorted(first[:, 0], rows, side="right") - 1
    origin = (images.offsets[ids][image] + (rows - first[image, 0]) * images.widths[ids][image])[:, None]

    # mode='clip' because the default checks all indices through a buffer; they are in range.
    left = np.take(images.pixels, origin + x.lower[image], axis=0, mode="clip").astype(np.float32)
    right = np.take(images.pixels, origin + x.upper[image], axis=0, mode="clip").astype(np.float32)
    left, right = left.reshape(-1, size * channels), right.reshape(-1, size * channels)
    _lerp(left, right, np.repeat(x.weight, channels, axis=1)[image])
    above = np.take(left, place[first + y.lower], axis=0, mode="clip")
    below = np.take(left, place[first + y.upper], axis=0, mode="clip")
    _lerp(above, below, y.weight[:, :, None])
    above += np.float32(0.5)
    return above.astype(np.uint8).reshape(-1, size, size, channels)


def _lerp(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> None:
    """`a + (b - a) * weight`, into `a`; `b` is spoilt."""
    b -= a
    b *= weight
    a += b

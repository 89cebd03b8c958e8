"""From bytes to square uint8 views: decoding under one fixed policy, then crop, resize and flip in one gather."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from big_distill.data import jpeg
from big_distill.data.jpeg import Part

# Float32 values that a resize works on at a time: few enough to stay in a core's cache, which is worth 2-4x.
_CHUNK_VALUES = 400_000
_SINGLE_VALUES = 20_000  # in views of more values images are worked on one by one: 1.7x at 128 x 128 x 3
_GROUP_BYTES = 1 << 25  # decoded images that are transformed together when they are read batch by batch
# Of what Pillow opens, what it decodes itself: an EPS file, whatever its name, it hands to Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class BadImage(Exception):
    """Bytes or an array that cannot be read as an image; the message says why."""


PartFn = Callable[[int, int], Part]
"""(height, width) of a whole image -> what is wanted of it"""


class Decoded(NamedTuple):
    """An image or a part of one, perhaps at a fraction of its size.

    pixels: uint8 [H, W, C]. At a reduction each is about the mean of a block, of those blocks that lie within the part.
    height, width: of the whole image, in its own pixels.
    top, left: of the part, in blocks of `reduction` pixels.
    intact: it is a plain JPEG whose file was read to its end without a fault, now or before, and no decoder of parts
      refused it now.
    """

    pixels: np.ndarray
    height: int
    width: int
    reduction: int = 1
    top: int = 0
    left: int = 0
    intact: bool = False


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
    return decode_part(data, channels, lambda height, width: Part()).pixels


def decode_part(
    data: bytes | np.ndarray, channels: int, part_fn: PartFn, known_size: tuple[int, int] | None = None
) -> Decoded:
    """As `decode`, but only what `part_fn` wants of the image, in the same pixels; at a reduction in about the same.

    Less work is done for a plain JPEG: in colour (for 3 channels) or grey, upright, and without a fault.

    Args:
      data, channels: as in `decode`.
      part_fn: is told the size of the image as it is shown.
      known_size: (height, width) of data that were found `intact` before. Otherwise all of a file is read, so that
        whether an image is damaged does not depend on the part.
    """
    if isinstance(data, np.ndarray):
        return _cut_whole(_from_array(data, channels), part_fn)
    if known_size is not None:
        image = _plain_jpeg(data, channels, known_size, part_fn, intact=True)
        if image is not None:
            return image
    return _read(data, channels, part_fn)


def _read(data: bytes, channels: int, part_fn: PartFn) -> Decoded:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                raise BadImage(f"{image.width} x {image.height} px is more than PIL.Image.MAX_IMAGE_PIXELS={limit}")
            if _is_plain_jpeg(image, channels):
                decoded = _plain_jpeg(data, channels, (image.height, image.width), part_fn, intact=False)
                if decoded is not None:
                    return decoded
            ImageOps.exif_transpose(image, in_place=True)
            return _cut_whole(_to_channels(image, channels), part_fn)
    except BadImage:
        raise
    except Exception as error:  # on damaged bytes Pillow's readers raise almost anything
        if not data:
            raise BadImage("no bytes") from error
        if isinstance(error, UnidentifiedImageError):
            raise BadImage(f"not an image of {', '.join(_FORMATS)}") from error
        raise BadImage(f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def _is_plain_jpeg(image: Image.Image, channels: int) -> bool:
    modes = ("RGB", "L") if channels == 3 else ("L",)  # grey of colour is what Pillow makes of RGB
    return image.format == "JPEG" and image.mode in modes and image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def _plain_jpeg(data: bytes, channels: int, size: tuple[int, int], part_fn: PartFn, intact: bool) -> Decoded | None:
    part = part_fn(*size)
    alone = intact and jpeg.can_be_alone(part)
    if alone and (pixels := jpeg.decode_alone(data, channels, part)) is not None:
        return _placed(pixels, size, part, intact=True)
    pixels = jpeg.decode(data, channels, *size, part)
    return None if pixels is None else _placed(pixels, size, part, intact=not alone)


def _placed(pixels: np.ndarray, size: tuple[int, int], part: Part, intact: bool) -> Decoded:
    top, left = jpeg.blocks_within(part.box, part.reduction)[:2] if part.box else (0, 0)
    return Decoded(pixels, *size, part.reduction, top, left, intact)


def _whole(pixels: np.ndarray) -> Decoded:
    return Decoded(pixels, pixels.shape[0], pixels.shape[1])


def _cut_whole(pixels: np.ndarray, part_fn: PartFn) -> Decoded:
    size = pixels.shape[0], pixels.shape[1]
    part = part_fn(*size)._replace(reduction=1)
    return _placed(jpeg.cut(pixels, part), size, part, intact=False)


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
    """uint8 images of any sizes, or parts of them, end to end in one buffer.

    pixels: uint8 [total, C].
    offsets: int64 [N], where each image's first pixel is.
    heights, widths: int64 [N], of the whole images.
    boxes: int64 [N, 4], what of each is here: top, left, height, width in blocks of `reductions` pixels a side.
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
        """Copies images, uint8 [H, W, C] each if they are whole, into one buffer; a single one is not copied."""
        decoded = [image if isinstance(image, Decoded) else _whole(image) for image in images]
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

    @classmethod
    def of_whole(cls, pixels: np.ndarray, offsets: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> Ragged:
        """Images that are there already, each of them whole."""
        corners = np.zeros_like(heights)
        boxes = np.stack([corners, corners, heights, widths], axis=1)
        return cls(pixels, offsets, heights, widths, boxes, np.ones_like(heights))

    @property
    def padded_shape(self) -> tuple[int, int, int]:
        """(H, W, C), the largest height and width of the images, each of which is whole."""
        return int(self.heights.max()), int(self.widths.max()), self.pixels.shape[1]

    def padded(self) -> np.ndarray:
        """uint8 [N, *padded_shape], zeros below and to the right of smaller images."""
        padded = np.zeros((len(self.offsets), *self.padded_shape), np.uint8)
        for image, start, height, width in zip(padded, self.offsets, self.heights, self.widths, strict=True):
            image[:height, :width] = self.pixels[start : start + height * width].reshape(height, width, -1)
        return padded


def pack_groups(examples: Iterable[tuple[Decoded, int]]) -> Iterator[tuple[Ragged, list[int]]]:
    """Packs images, each with a number, some megabytes at a time: few calls for small ones, little memory for large."""
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
    """Along one axis, for every output pixel: its two source pixels and the weight of the second, each [B, S]."""

    lower: np.ndarray
    upper: np.ndarray
    weight: np.ndarray

    def __getitem__(self, part: slice | int) -> _Taps:
        return _Taps(self.lower[part], self.upper[part], self.weight[part])

    def since(self, start: np.ndarray) -> _Taps:
        """The same source pixels counted from others, [B], on."""
        return _Taps(self.lower - start[:, None], self.upper - start[:, None], self.weight)

    def by_channel(self, channels: int) -> _Taps:
        """[B, S C], of pixels of which each channel counts."""
        lower, upper = ((a[..., None] * channels + np.arange(channels)) for a in (self.lower, self.upper))
        shape = len(lower), -1
        return _Taps(lower.reshape(shape), upper.reshape(shape), np.repeat(self.weight, channels, axis=1))


def crop_resize(
    images: Ragged, ids: np.ndarray, boxes: np.ndarray, size: int, flip: np.ndarray | None = None
) -> np.ndarray:
    """Crops and resizes: bilinear with half-pixel centres and no antialiasing.

    The numbers are those of `tf.image.resize` on the crop, rounded half up. Of a reduced image the blocks that lie
    within the box are used, in the places that they have in the whole.

    Args:
      images: N images.
      ids: int [B], which of them.
      boxes: int [B, 4]: top, left, height, width in whole pixels of the whole image, within the part that is there and
        with a block within it on each axis. Nothing outside of its box enters a view.
      size: side S of the views.
      flip: bool [B], which views to mirror left to right.

    Returns:
      uint8 [B, S, S, C].
    """
    reductions = images.reductions[ids]
    y = _taps(boxes[:, 2], np.full(len(ids), size), 0, size, boxes[:, 0], reductions)
    x = _taps(boxes[:, 3], np.full(len(ids), size), 0, size, boxes[:, 1], reductions)
    if flip is not None:
        x = _Taps(*(np.where(flip[:, None], a[:, ::-1], a) for a in (x.lower, x.upper, x.weight)))
    return _sample(images, ids, y, x)


def central_view(images: Ragged, ids: np.ndarray, resize: int, size: int) -> np.ndarray:
    """Resizes the shorter side to `resize`, then crops the centre: the view of evaluation and of a fixed teacher.

    The longer side is rounded to the nearest pixel (half to even), the crop's corner down. Only what the crop shows is
    computed.

    Args:
      images: N whole images.
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


def _taps(
    length: np.ndarray,
    resized: np.ndarray,
    first: np.ndarray | int,
    size: int,
    start: np.ndarray | int = 0,
    reduction: np.ndarray | int = 1,
) -> _Taps:
    """Of `length` pixels from `start` on, resized to `resized` ones, those from `first` on. Float32, as TensorFlow's.

    Every argument but `size` is [B]; source pixels are counted in blocks of `reduction`.
    """
    length, resized, first, start, reduction = (
        a[:, None] for a in np.broadcast_arrays(length, resized, first, start, reduction)
    )
    scale = length.astype(np.float32) / resized.astype(np.float32)
    centre = (first + np.arange(size)).astype(np.float32) + np.float32(0.5)
    block, within = np.divmod(start, reduction)
    position = (centre * scale + within.astype(np.float32)) / reduction.astype(np.float32) - np.float32(0.5)
    floor = np.floor(position)
    least, most = -(-start // reduction), (start + length) // reduction - 1
    lower = np.maximum(floor.astype(np.int64) + block, least)
    upper = np.minimum(np.ceil(position).astype(np.int64) + block, most)
    return _Taps(np.minimum(lower, most), np.maximum(upper, least), position - floor)


def _sample(images: Ragged, ids: np.ndarray, y: _Taps, x: _Taps) -> np.ndarray:
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
    """First along x, in the rows that some output needs (at most 2 S of an image), then along y, a row at a time."""
    size, channels = y.lower.shape[1], images.pixels.shape[1]
    _, _, heights, widths = images.boxes[ids].T
    first = (np.cumsum(heights) - heights)[:, None]  # the rows of the chunk's images, counted through
    needed = np.zeros(heights.sum(), bool)
    needed[first + y.lower] = True
    needed[first + y.upper] = True
    place = np.cumsum(needed) - 1
    rows = np.flatnonzero(needed)
    image = np.searchsorted(first[:, 0], rows, side="right") - 1
    origin = (images.offsets[ids][image] + (rows - first[image, 0]) * widths[image])[:, None]

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


def _sample_one(pixels: np.ndarray, y: _Taps, x: _Taps) -> np.ndarray:
    """The same numbers [S, S C] of one image [H, W C]: a call more an image, but no index of every pixel."""
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
    """`a + (b - a) * weight`, into `a`; `b` is spoilt."""
    b -= a
    b *= weight
    a += b

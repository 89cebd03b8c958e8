"""Decodes images from bytes or an array to pixels, under one policy for every kind."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from big_distill.config import BIT_DEPTH
from big_distill.data import jpeg
from big_distill.data.jpeg import Part

# Pillow decodes these itself. It would hand an EPS file, whatever its name, to Ghostscript.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
_TURNS = {  # EXIF orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_BITS, _TIFF_MEANING = 258, 262  # BitsPerSample, PhotometricInterpretation (0: MinIsWhite)
_PNG_DEPTH = 24  # where the header of a PNG has its bits a channel
_JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_EXTRAS = (*range(0xE2, 0xEE), 0xEF, 0xFE)  # APP2 to APP13, APP15, comments
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")  # of pixels, and of their orientation


class BadImage(Exception):
    """Says why bytes or an array cannot be read as an image."""


PartFn = Callable[[int, int], Part]
"""Maps (height, width) of a whole image to the part that is wanted of it."""


class Decoded(NamedTuple):
    """Holds an image or a part of one, perhaps at a fraction of its size.

    pixels: uint8 [H, W, C]. At a reduction each pixel is about the mean of one block that lies within the part.
    height, width: size of the whole image, in its own pixels.
    top, left: corner of the part, in blocks of `reduction` pixels.
    intact: True for a plain JPEG whose file was read to its end without a fault, now or before, unless a decoder of
      parts refused it now.
    """

    pixels: np.ndarray
    height: int
    width: int
    reduction: int = 1
    top: int = 0
    left: int = 0
    intact: bool = False


def decode(data: bytes | np.ndarray, channels: int, bit_depth: int = BIT_DEPTH) -> np.ndarray:
    """Reads one image under one policy, whatever kind of JPEG, PNG, GIF, WebP, BMP, TIFF or PPM it is.

    It takes the first frame of an animation, turns it as its EXIF orientation says, and lays transparent pixels over
    white. It scales grey of more than 8 bits to 8, and converts CMYK, palettes and other colour spaces through RGB. It
    repeats grey into three channels, and converts colour to grey as ITU-R 601 luma. Beside the pixels it reads the
    orientation alone, so a fault elsewhere in the file costs no image.

    Args:
      data: an encoded image, or uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (the last with alpha).
      channels: 3 or 1.
      bit_depth: bits that are used of each value in a file of more than 8: 2 ** bit_depth - 1 is white.

    Returns:
      uint8 [H, W, channels].

    Raises:
      BadImage: damaged, truncated or empty data, a value above white, or a decompression bomb: more than
        `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    return decode_part(data, channels, lambda height, width: Part(), bit_depth=bit_depth).pixels


def largest_value(data: bytes | np.ndarray) -> int | None:
    """Returns the largest value in a file of more than 8 bits a channel. None for other files, and unreadable ones."""
    if isinstance(data, np.ndarray):
        return None
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.mode in _SIXTEEN_BIT_MODES:
                return int(np.asarray(image).max())
            colours = [band for band in image.getbands() if band != "A"]
            deep = _is_deep_colour(image, data)
            return 257 * max(int(np.asarray(image.getchannel(band)).max()) for band in colours) if deep else None
    except Exception:  # on damaged bytes Pillow's readers raise almost anything
        bare = _bare(data)
        return largest_value(bare) if len(bare) < len(data) else None


def size_of(data: bytes | np.ndarray) -> tuple[int, int] | None:
    """Returns the height and width of an image as it is stored, without decoding it; None if they cannot be read."""
    if isinstance(data, np.ndarray):
        return data.shape[:2] if data.ndim > 1 and data.size else None
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return image.height, image.width
    except Exception:  # on damaged bytes Pillow's readers raise almost anything
        return None


def decode_part(
    data: bytes | np.ndarray,
    channels: int,
    part_fn: PartFn,
    known_size: tuple[int, int] | None = None,
    bit_depth: int = BIT_DEPTH,
) -> Decoded:
    """Reads the part of an image that `part_fn` wants. The pixels are those of `decode`, at a reduction about those.

    A plain JPEG takes less work. It is in colour (for 3 channels) or grey, upright, and without a fault.

    Args:
      data, channels: arguments of `decode`.
      part_fn: function of the size of the image as it is shown.
      known_size: (height, width) of data that were found `intact` before. Without it all of a file is read, so that
        the part does not decide whether an image counts as damaged.
      bit_depth: argument of `decode`.
    """
    if isinstance(data, np.ndarray):
        return _cut_whole(_from_array(data, channels), part_fn)
    if known_size is not None and (image := _plain_jpeg(data, channels, known_size, part_fn, intact=True)):
        return image
    return _read(data, channels, part_fn, bit_depth)


def _read(data: bytes, channels: int, part_fn: PartFn, bit_depth: int) -> Decoded:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                raise BadImage(f"{image.width} x {image.height} px is more than PIL.Image.MAX_IMAGE_PIXELS={limit}")
            if _is_plain_jpeg(image, channels):
                size = image.height, image.width
                if decoded := _plain_jpeg(data, channels, size, part_fn, intact=False):
                    return decoded
            image.load()  # a PNG may have its EXIF behind its pixels
            if bit_depth < BIT_DEPTH and _is_deep_colour(image, data):
                raise BadImage(
                    f"colour of 16 bits a channel, of which config.source.bit_depth={bit_depth} are used, cannot be "
                    "read: convert it to 8 bits"
                )
            if image.mode in _SIXTEEN_BIT_MODES and _tag(image, _TIFF_MEANING) == (0,) and image.format == "TIFF":
                raise BadImage("a TIFF of more than 8 bits whose least value is white: convert it")
            turn = _TURNS.get(_orientation(image))
            upright = image if turn is None else image.transpose(turn)
            return _cut_whole(_to_channels(upright, channels, bit_depth), part_fn)
    except BadImage:
        raise
    except Exception as error:  # on damaged bytes Pillow's readers raise almost anything
        if len(bare := _bare(data)) < len(data):
            return _read(bare, channels, part_fn, bit_depth)
        if not data:
            raise BadImage("no bytes") from error
        if isinstance(error, UnidentifiedImageError):
            if data.startswith(_TIFF_SIGNATURES):
                raise BadImage("a TIFF with channels or values that Pillow does not read: convert it") from error
            raise BadImage(f"not an image of {', '.join(_FORMATS)}") from error
        raise BadImage(f"{type(error).__name__}: {error}".replace("\n", " ")) from error


def _bare(data: bytes) -> bytes:
    """Leaves out texts, colour profiles and the like: Pillow refuses a whole file if one is large or damaged."""
    if data.startswith(_PNG_SIGNATURE):
        return _pixels_of_png(data)
    return _pixels_of_jpeg(data) if data.startswith(_JPEG_SIGNATURE) else data


def _pixels_of_jpeg(data: bytes) -> bytes:
    """Keeps of the segments before the pixels those of JFIF, Exif and Adobe, and all that are no application's."""
    kept, start = [_JPEG_SIGNATURE], len(_JPEG_SIGNATURE)
    while data[start : start + 1] == b"\xff" and data[start + 1 : start + 2] not in (b"", b"\xda"):
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if data[start + 1] not in _JPEG_EXTRAS:
            kept.append(data[start:end])
        start = end
    return b"".join([*kept, data[start:]])


def _pixels_of_png(data: bytes) -> bytes:
    kept, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while start < len(data):
        (length,) = struct.unpack(">I", data[start : start + 4].rjust(4, b"\0"))
        end = start + 12 + length  # length, name, contents, checksum
        if data[start + 4 : start + 8] in _PNG_CHUNKS:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)


def _orientation(image: Image.Image) -> int:
    """Reads the EXIF orientation: 1 where the image is upright, and where its EXIF cannot be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # on damaged bytes Pillow's readers raise almost anything
        return 1


def _is_deep_colour(image: Image.Image, data: bytes) -> bool:
    """Returns True for a PNG or TIFF of 16 bits in several channels, of which Pillow reads the upper 8."""
    if image.mode in _SIXTEEN_BIT_MODES or image.format not in ("PNG", "TIFF"):
        return False
    return (data[_PNG_DEPTH] if image.format == "PNG" else max(_tag(image, _TIFF_BITS))) == BIT_DEPTH


def _tag(image: Image.Image, number: int) -> tuple[int, ...]:
    """Returns the numbers of a tag of a TIFF; (0,) if it has none."""
    value = getattr(image, "tag_v2", {}).get(number, 0)
    return value if isinstance(value, tuple) else (value,)


def _is_plain_jpeg(image: Image.Image, channels: int) -> bool:
    modes = ("RGB", "L") if channels == 3 else ("L",)  # Pillow converts colour to grey, from RGB
    return image.format == "JPEG" and image.mode in modes and _orientation(image) == 1


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
    return _to_channels(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array), channels, BIT_DEPTH)


def _to_channels(image: Image.Image, channels: int, bit_depth: int) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES:
        white, grey = 2**bit_depth - 1, np.asarray(image).astype(np.int64, copy=False)
        if grey.min() < 0 or grey.max() > white:
            raise BadImage(
                f"values from {grey.min()} to {grey.max()}, but config.source.bit_depth={bit_depth} has 0 to {white}"
            )
        image = Image.fromarray(((255 * grey + white // 2) // white).astype(np.uint8))  # white is odd: no ties
    elif image.mode == "F":
        raise BadImage("floating-point pixels have no known range")
    elif image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas
    mode = "L" if channels == 1 else "RGB"
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels.reshape(*pixels.shape[:2], channels)

"""Decodes JPEGs by libjpeg-turbo to Pillow's pixels, but faster: whole, at a fraction of their size, or a part."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from absl import logging

REDUCTIONS = (8, 4, 2, 1)
"""Sides, in pixels, of the blocks that can be decoded to one pixel each. A JPEG's own blocks are 8 x 8."""


class Box(NamedTuple):
    """Describes a part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Part(NamedTuple):
    """Describes a box in the pixels of an image, or all of it, at one of `REDUCTIONS`. Only a plain JPEG is reduced."""

    box: Box | None = None
    reduction: int = 1


_SCRATCH_BYTES = 1 << 24  # a larger image gets memory of its own, which is not kept


class _Scratch(threading.local):
    """Holds memory for an image that is cut at once. Fresh memory for every image would cost page faults."""

    def __init__(self) -> None:
        self._room = np.empty(0, np.uint8)

    def room(self, size: int) -> np.ndarray | None:
        if size > _SCRATCH_BYTES:
            return None
        if len(self._room) < size:
            self._room = np.empty(size, np.uint8)
        return self._room


_scratch = _Scratch()


def decode(data: bytes, channels: int, height: int, width: int, part: Part) -> np.ndarray | None:
    """Decodes a part of a JPEG that is upright. For 3 channels it is in colour or grey, for 1 channel it is grey.

    `height` and `width` are those of the whole image. The reduced inverse DCT costs less and antialiases. All of the
    file is read, so a fault is found wherever the box is.

    Returns:
      uint8 [H, W, channels], or None if the file has a fault. Without a box H is ceil(height / part.reduction), else
      the height that `blocks_within` returns.
    """
    height, width = -(-height // part.reduction), -(-width // part.reduction)
    room = _scratch.room(height * width * channels) if part.box else None
    colours = "RGB" if channels == 3 else "GRAY"
    try:
        pixels = simplejpeg.decode_jpeg(data, colours, min_height=height, min_width=width, buffer=room)
    except ValueError:
        return None
    if pixels.shape != (height, width, channels):
        return None
    return cut(pixels, part)


def can_be_alone(part: Part) -> bool:
    """Returns True if `decode_alone` may be asked for this part."""
    # nvImageCodec 0.9 and libjpeg-turbo's whole decode upsample the chroma of a box 1 px wide differently.
    return part.box is not None and part.box.width > 1 and part.reduction == 1 and part_decoder() is not None


def decode_alone(data: bytes, channels: int, part: Part) -> np.ndarray | None:
    """Decodes a part that `can_be_alone`, of an intact JPEG, to the pixels of `decode`; nothing below or beside it.

    Returns None if the decoder of the extra `jpeg` refuses: it finds a fault, perhaps one that `decode` accepts.
    """
    decode_box = part_decoder()
    assert decode_box and part.box
    pixels = decode_box(data, channels, *part.box)
    return pixels if pixels is not None and pixels.shape == (part.box.height, part.box.width, channels) else None


def cut(pixels: np.ndarray, part: Part) -> np.ndarray:
    """Copies the pixels within `part.box` of an image at `part.reduction`. Without a box it returns them uncopied."""
    if part.box is None:
        return pixels
    top, left, height, width = blocks_within(part.box, part.reduction)
    return pixels[top : top + height, left : left + width].copy()


def largest_reduction(box: Box, size: int) -> int:
    """Chooses the largest of `REDUCTIONS` that leaves `size` blocks a side in the box, to enlarge nothing; else 1."""
    for reduction in REDUCTIONS:
        _, _, height, width = blocks_within(box, reduction)
        if min(height, width) >= size:
            return reduction
    return 1


def blocks_within(box: Box, reduction: int) -> Box:
    """Finds the blocks, of `reduction` pixels a side, that lie within a box of pixels."""
    top, left = -(-box.top // reduction), -(-box.left // reduction)
    return Box(top, left, (box.top + box.height) // reduction - top, (box.left + box.width) // reduction - left)


def visible(box: Box, height: int, width: int) -> Box:
    """Returns the share of a box that lies within an image."""
    top, left = max(box.top, 0), max(box.left, 0)
    return Box(top, left, min(box.top + box.height, height) - top, min(box.left + box.width, width) - left)


def union(boxes: list[Box]) -> Box:
    """Returns the smallest box that holds all of them."""
    top, left = min(box.top for box in boxes), min(box.left for box in boxes)
    bottom, right = max(box.top + box.height for box in boxes), max(box.left + box.width for box in boxes)
    return Box(top, left, bottom - top, right - left)


@functools.cache
def part_decoder() -> Callable[..., np.ndarray | None] | None:
    """Returns `jpeg_parts.decode_box`, or None without the extra `jpeg`, or, with a warning, if it does not work here.

    The import silences the standard error of the whole process, so call this before there are threads.
    """
    try:
        from big_distill.data import jpeg_parts

        same = _decodes_to_the_same(jpeg_parts.decode_box)
    except ModuleNotFoundError as error:
        if error.name not in ("nvidia", "nvidia.nvimgcodec"):
            logging.warning("JPEGs are decoded whole: the extra `jpeg` lacks the module %s", error.name)
        return None
    except Exception as error:  # a broken installation, or a version with other names
        logging.warning("JPEGs are decoded whole: the extra `jpeg` does not work: %s: %s", type(error).__name__, error)
        return None
    if not same:
        logging.warning("JPEGs are decoded whole: nvImageCodec and simplejpeg, as installed, give different pixels")
        return None
    return jpeg_parts.decode_box


def _decodes_to_the_same(decode_box: Callable[..., np.ndarray | None]) -> bool:
    """Returns True if both decode noise to the same pixels. Other versions may upsample the chroma differently."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    data, box = simplejpeg.encode_jpeg(image, colorsubsampling="420"), Box(7, 19, 30, 27)
    ours, theirs = decode(data, 3, 48, 64, Part(box)), decode_box(data, 3, *box)
    return ours is not None and theirs is not None and np.array_equal(ours, theirs)

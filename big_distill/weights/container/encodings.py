"""Encodes one array as bytes, in the smallest way, and decodes it to the same bits.

* `raw`: the bytes of the array.
* `deflated`: the bytes of the array, compressed by zlib.
* `half`: for floats whose lower 16 bits are zero (bfloat16): their highest bytes, then their second bytes, compressed
  by zlib.
* `sparse`: the gaps between the values that are not zero, Huffman-coded, and these values.
* `shared`: those gaps, the distinct values, and the index of each value that is not zero, Huffman-coded (Han et al.
  2016, "Deep Compression", arXiv 1510.00149, section 4).
* `integers`: a scale for each index of the last axis, and the integers in [-127, 127] that it multiplies,
  Huffman-coded.
* `sparse_integers`: the same, with gaps instead of zeros.

A gap of 255 or more zeros takes several symbols: each symbol 255 stands for 255 zeros and no value. These are the
paper's filler zeros; here they cost an index but no value.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from big_distill.weights.container import huffman

PARTS = {"raw": 1, "deflated": 1, "half": 1, "sparse": 2, "shared": 3, "integers": 2, "sparse_integers": 3}
"""The number of parts that an array of each kind has."""
MAX_RATIO = 4096
"""The most bytes that an array may have for each byte of its parts: reading a small file needs little memory."""
Encoding = tuple[str, str, list[bytes]]
"""(kind, order of axes, parts)."""
_FILLER = 255
_TOPS = [2**bits - 1 for bits in range(7, 0, -1)]  # the largest integers of 8, 7, ... 2 bits


def encode(array: np.ndarray) -> Encoding:
    """Encodes an array in the way that takes the fewest bytes."""
    known: list[Encoding] = [("raw", "C", [array.tobytes()]), ("deflated", "C", [zlib.compress(array.tobytes(), 9)])]
    if array.dtype == np.float32 and array.size > 1:
        known += _of_floats(array)

    def size(encoding: Encoding) -> int:
        return sum(map(len, encoding[2]))

    return min((encoding for encoding in known if array.nbytes <= MAX_RATIO * size(encoding)), key=size)


def decode(kind: str, order: str, parts: list[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Decodes what `encode` returned.

    Raises:
      ValueError, IndexError, zlib.error: the parts are not those of such an array.
    """
    count = math.prod(shape)
    if kind in ("raw", "deflated"):
        data = parts[0] if kind == "raw" else _inflated(parts[0], count * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape).copy()
    if dtype != np.float32:
        raise ValueError(f"an array of {dtype} has the kind {kind}: expected float32")
    if kind == "half":
        upper, lower = np.frombuffer(_inflated(parts[0], 2 * count), np.uint8).reshape(2, count).astype(np.uint32)
        return (upper << 24 | lower << 16).view(np.float32).reshape(shape)
    if kind in ("integers", "sparse_integers"):
        scales, *gaps, symbols = parts
        values = (huffman.decode(symbols) - _TOPS[0]).astype(np.float32)
        used = _positions(huffman.decode(gaps[0])) if gaps else np.arange(count)
        scale = np.frombuffer(scales, "<f4").reshape(shape[-1:])
        return _placed(values, used, shape, order) * scale
    words = np.frombuffer(parts[1], "<u4")
    if kind == "shared":
        words = words[huffman.decode(parts[2])]
    return _placed(words.view(np.float32), _positions(huffman.decode(parts[0])), shape, order)


def _of_floats(array: np.ndarray) -> Iterator[Encoding]:
    words = array.reshape(-1).view(np.uint32)
    if not (words & 0xFFFF).any():
        upper, lower = ((words >> shift).astype(np.uint8).tobytes() for shift in (24, 16))
        yield "half", "C", [zlib.compress(upper + lower, 9)]
    grid = grid_of(array) if array.ndim > 1 else None
    for order in ("C", "F"):
        words = array.flatten(order).view(np.uint32)
        used = np.flatnonzero(words)  # -0.0 is a value
        gaps = huffman.encode(_gaps(used))
        yield "sparse", order, [gaps, words[used].tobytes()]
        values, codes = np.unique(words[used], return_inverse=True)
        if 0 < len(values) <= huffman.MAX_SYMBOLS:
            yield "shared", order, [gaps, values.tobytes(), huffman.encode(codes)]
        if grid is not None:
            scales, symbols = grid[0].tobytes(), grid[1].flatten(order) + _TOPS[0]
            yield "integers", order, [scales, huffman.encode(symbols)]
            yield "sparse_integers", order, [scales, gaps, huffman.encode(symbols[used])]


def grid_of(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Finds (scales float32 [F], integers [..., F]) whose products are the array, to the bit; None if none are."""
    filters = array.reshape(-1, array.shape[-1])
    largest = np.abs(filters).max(0)
    widest = filters[:, int(np.argmax(largest))]
    if not np.isfinite(filters).all() or (array.view(np.uint32) == 1 << 31).any() or len(np.unique(widest)) > 255:
        return None
    if largest[largest > 0].min(initial=1) < 256 * np.finfo(np.float32).tiny:  # scales too small to divide by
        return None
    for top in _TOPS:
        scales = np.where(largest > 0, largest / np.float32(top), np.float32(1))
        exact = np.zeros(len(scales), bool)
        for near in (scales, np.nextafter(scales, np.float32(0)), np.nextafter(scales, np.float32(np.inf))):
            is_exact = (np.rint(filters / near) * near == filters).all(0)
            scales = np.where(is_exact & ~exact, near, scales)
            exact |= is_exact
        if exact.all():
            return scales, np.rint(array / scales).astype(np.int64)
    return None


def _gaps(used: np.ndarray) -> np.ndarray:
    """Counts the zeros before each of these positions; a gap of 255 or more takes several symbols."""
    gaps = np.diff(used, prepend=-1) - 1
    fillers = gaps // _FILLER
    symbols = np.full(len(used) + int(fillers.sum()), _FILLER)
    symbols[np.cumsum(fillers + 1) - 1] = gaps % _FILLER
    return symbols


def _positions(symbols: np.ndarray) -> np.ndarray:
    """Returns the positions that `_gaps` was given."""
    is_value = symbols != _FILLER
    return (np.cumsum(symbols + is_value) - 1)[is_value]


def _inflated(data: bytes, size: int) -> bytes:
    return zlib.decompressobj().decompress(data, max(1, size))


def _placed(values: np.ndarray, used: np.ndarray, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Builds an array of zeros with the values at these positions, counted in this order of axes."""
    flat = np.zeros(math.prod(shape), np.float32)
    flat[used] = values  # NumPy refuses a position beyond the end
    return np.ascontiguousarray(flat.reshape(shape, order=order))  # type: ignore[call-overload]

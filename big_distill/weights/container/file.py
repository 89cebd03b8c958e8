"""Writes arrays into one small file, and reads them bit by bit; shared and sparse values are entropy-coded.

    b"BDZ" version | size of the header, uint32 | header, JSON deflated | payload | SHA-256 of all that

The header has a list [name, dtype, shape, kind, order, sizes of its parts] for every array. `encodings` describes the
kinds. All integers are little-endian.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import pathlib
import struct
import zlib
from collections.abc import Mapping

import numpy as np

from big_distill.errors import RunError
from big_distill.files import atomic
from big_distill.weights.container import encodings

SUFFIX = ".bdz"
_MAGIC, _VERSION = b"BDZ", 1
_MAX_HEADER = 1 << 20  # bytes, enough for some 10,000 arrays
_MAX_BYTES = 1 << 33  # for all arrays of a file together
_MAX_AXES = 64  # NumPy's limit
_DTYPES = ("<f4", "<f2", "<i4", "|i1", "|u1", "|b1")


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file, whole or not at all; each array has the kind and the order of axes that take the fewest bytes.

    Raises:
      ValueError: an array of another dtype than float32, float16, int32, int8, uint8 and bool.
    """
    header, payload = [], []
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.str not in _DTYPES:
            raise ValueError(f"{name} has dtype {array.dtype}: expected one of {', '.join(_DTYPES)}")
        kind, order, parts = encodings.encode(array)
        header.append([name, array.dtype.str, list(array.shape), kind, order, [len(part) for part in parts]])
        payload += parts
    packed = zlib.compress(json.dumps(header, separators=(",", ":")).encode(), 9)
    data = b"".join([_MAGIC, bytes([_VERSION]), struct.pack("<I", len(packed)), packed, *payload])
    atomic.write(path, data + hashlib.sha256(data).digest())


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a file.

    Raises:
      RunError: the file is of another kind or version, or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if data[:3] != _MAGIC or len(data) < 40:
        raise RunError(f"{path} is not a container of big_distill (*{SUFFIX}), or it is cut off")
    if data[3] != _VERSION:
        raise RunError(f"{path} is a container of version {data[3]}; this big_distill reads version {_VERSION}")
    content, checksum = data[:-32], data[-32:]
    if hashlib.sha256(content).digest() != checksum:
        raise RunError(f"{path} is damaged: its checksum is wrong")
    try:
        return _arrays(content)
    except (ValueError, TypeError, LookupError, RecursionError, MemoryError, struct.error, zlib.error) as error:
        raise RunError(f"{path} is not a valid container: {error}") from error


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    (size,) = struct.unpack_from("<I", content, 4)
    inflate = zlib.decompressobj()
    header = json.loads(inflate.decompress(content[8 : 8 + size], _MAX_HEADER))
    position, arrays = 8 + size, {}
    total, limit = 0, min(_MAX_BYTES, encodings.MAX_RATIO * len(content))
    for name, dtype, shape, kind, order, sizes in header:
        if type(name) is not str or name in arrays or dtype not in _DTYPES or len(sizes) != encodings.PARTS[kind]:
            raise ValueError(f"its header has a wrong entry: {name!r}, {dtype!r}, {kind!r}")
        if len(shape) > _MAX_AXES or not all(type(n) is int and 0 <= n <= _MAX_BYTES for n in [*shape, *sizes]):
            raise ValueError(f"{name!r} has shape {shape} and parts of {sizes} bytes")
        total += math.prod(shape) * np.dtype(dtype).itemsize
        if total > limit:
            raise ValueError(f"it claims arrays of more than {limit} bytes in a file of {len(content)} bytes")
        starts = [*itertools.accumulate(sizes, initial=position)]
        parts, position = [content[a:b] for a, b in itertools.pairwise(starts)], starts[-1]
        arrays[name] = encodings.decode(kind, order, parts, np.dtype(dtype), tuple(shape))
    if position != len(content):
        raise ValueError("its parts do not fill it")
    return arrays

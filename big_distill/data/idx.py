"""Reads images and labels from IDX files, the format of MNIST: of any size and number of classes, packed or not."""

from __future__ import annotations

import gzip
import math
import pathlib
import re
import struct

import numpy as np

from big_distill.data import Source, array_source
from big_distill.data.split_names import split_ids
from big_distill.errors import ConfigError, DataError

MAX_BYTES = 1 << 31
"""Limit of one unpacked file: a small one must not fill the memory."""
_IMAGES = re.compile(r"(.+)-images[-.]idx[34]-ubyte(\.gz)?")
_MAX_AXES = 4  # [N, H, W, C]
_HEADER = 4 * (1 + _MAX_AXES)  # bytes
_TEST = "t10k"  # MNIST calls its test split so


def read_idx(path: pathlib.Path, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Reads an IDX file of bytes, packed by gzip or not: uint8 [N, ...].

    It holds a big-endian magic number 0x08NN for NN axes, their lengths, and the items.

    Raises:
      DataError: the file cannot be read, or is none of that kind.
    """
    data = _read(path, max_bytes + 1)
    if len(data) > max_bytes:
        raise DataError(f"{path} cannot be read: it unpacks to more than {max_bytes} bytes")
    count, *shape = _header(data, path)
    offset = 4 * (2 + len(shape))
    size, expected = len(data) - offset, count * math.prod(shape)
    if size != expected or not size:
        raise DataError(f"{path} announces {count} items of {expected} bytes together, but holds {size} bytes")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(count, *shape)


def _read(path: pathlib.Path, most: int) -> bytes:
    """Reads the first bytes of a file, unpacked."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            return file.read(most)
    except Exception as error:  # gzip and zlib raise several kinds on damaged files
        raise DataError(f"{path} is truncated or of another format: {error}") from error


def _header(data: bytes, path: pathlib.Path) -> list[int]:
    """Returns the lengths of the axes, the number of items first."""
    axes = data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or not 1 <= axes <= _MAX_AXES or len(data) < 4 * (1 + axes):
        raise DataError(f"{path} starts with 0x{data[:4].hex()}, expected the IDX magic number 0x0000080N")
    return list(struct.unpack_from(f">{axes}I", data, 4))


def open_idx(path: str | None, split: str, num_classes: int) -> Source:
    """Opens a directory of pairs PREFIX-images-idx3-ubyte and PREFIX-labels-idx1-ubyte, perhaps with .gz.

    A pair is a split, called as the last word of its prefix, and 'test' for t10k. Images are [N, H, W] or [N, H, W, C],
    labels are 0 to num_classes - 1. Without a file of labels a split has none.

    Raises:
      ConfigError: the path is not set.
      DataError: there are no such files, or they do not fit together.
    """
    if not path:
        raise ConfigError("config.source.path must be set: the directory of the source 'idx'")
    root = pathlib.Path(path).expanduser()
    try:
        found = {file: match for file in sorted(root.iterdir()) if (match := _IMAGES.fullmatch(file.name))}
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error}") from error
    if not found:
        raise DataError(f"{root} holds no pairs train-images-idx3-ubyte and train-labels-idx1-ubyte (perhaps with .gz)")
    splits: dict[str, pathlib.Path] = {}
    for file, match in found.items():
        name = match[1].rpartition("-")[2].replace(_TEST, "test")
        if name in splits:
            raise DataError(
                f"{root}: {splits[name].name} and {file.name} are both the split {name!r}: keep one set there"
            )
        splits[name] = file
    lengths = {name: _header(_read(file, _HEADER), file)[0] for name, file in splits.items()}
    ids = split_ids(str(root), split, lengths)
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    places, start = [], 0
    for name, file in splits.items():
        here = np.flatnonzero((ids >= start) & (ids < start + lengths[name]))
        if len(here):
            for part, values in zip((images, labels), _pair(file), strict=True):
                part.append(values[ids[here] - start])
            places.append(here)
        start += lengths[name]
    if len({part.shape[1:] for part in images}) > 1:
        raise DataError(f"{root}: the splits have images of other shapes: {[list(part.shape[1:]) for part in images]}")
    order = np.argsort(np.concatenate(places))
    name, pixels, numbers = f"{root} {split}", np.concatenate(images)[order], np.concatenate(labels)[order]
    if (numbers < 0).all():
        return array_source(name, pixels)
    return array_source(name, pixels, numbers, [str(label) for label in range(num_classes)])


def _pair(file: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads the images of a split and its labels, int [N], which are -1 where there is no file of labels."""
    images = read_idx(file)
    beside = re.sub(r"-images([-.])idx[34]-", r"-labels\1idx1-", file.name).removesuffix(".gz")
    paths = [path for suffix in ("", ".gz") if (path := file.with_name(beside + suffix)).is_file()]
    if not paths:
        return images, np.full(len(images), -1)
    labels = read_idx(paths[0])
    if labels.shape != (len(images),):
        raise DataError(f"{file} holds {len(images)} images, but {paths[0].name} labels of shape {list(labels.shape)}")
    return images, labels.astype(int)

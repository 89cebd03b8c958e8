"""Decodes the images of a source, and counts the unreadable ones. Reads whole splits, into memory if they fit."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import TypeVar

import numpy as np
from absl import logging
from tqdm import tqdm

from big_distill.config import BIT_DEPTH
from big_distill.data import Source
from big_distill.data.decode import BadImage, Decoded, decode_part, largest_value, size_of
from big_distill.data.jpeg import Part
from big_distill.data.resample import Ragged
from big_distill.errors import DataError

RowPartFn = Callable[[int, int, int], Part]
"""Maps (row of the batch, height, width) to the part that is wanted of the image."""


_Result = TypeVar("_Result")


def whole(row: int, height: int, width: int) -> Part:
    """Asks for all of every image. It is a `RowPartFn`."""
    return Part()


_CHUNK = 256  # examples a thread reads at a time when a whole split is decoded
_SAMPLE = 64  # images from which the sizes of those of a split are estimated
_NAMED = 20  # bad images that an error names


class Reader:
    """Decodes the examples of a source and counts those that cannot be decoded.

    It reads all of an image the first time. Later it may read only a part. `labels_for` names an objective that needs
    the label of every example. A label that is none of the source's classes raises DataError.
    """

    def __init__(self, source: Source, channels: int, max_bad_fraction: float, labels_for: str | None = None):
        self.source = source
        self._labels_for = labels_for
        self.channels = channels
        self._max_bad_fraction = max_bad_fraction
        self._bad: dict[int, str] = {}
        self._counts_all = False
        self._sizes = np.zeros((source.num_examples, 2), np.int32)
        self._refused: set[int] = set()  # ids that the decoder of parts refused: it is not asked again
        self._lock = threading.Lock()

    @property
    def bad(self) -> tuple[str, ...]:
        """Names the images found unreadable so far."""
        return tuple(self._bad.values())

    def sizes(self, ids: np.ndarray) -> np.ndarray:
        """Returns heights and widths of plain JPEGs that came before, int64 [B, 2], and zeros for other images."""
        return self._sizes[ids].astype(np.int64)

    def decoded(
        self, ids: np.ndarray, part_fn: RowPartFn = whole, first_row: int = 0
    ) -> Iterator[tuple[Decoded | None, int]]:
        """Yields (image, label) of each id. An image that cannot be read is None."""
        for row, (id_, (data, label)) in enumerate(zip(ids.tolist(), self.source.read(ids), strict=True), first_row):
            image, (height, width) = None, self._sizes[id_].tolist()
            known_size = (height, width) if height and id_ not in self._refused else None
            try:
                image = decode_part(
                    data, self.channels, functools.partial(part_fn, row), known_size, self.source.bit_depth
                )
                if image.intact:
                    self._sizes[id_] = image.height, image.width
                elif known_size is not None:
                    self._refused.add(id_)
            except BadImage as error:
                self._count(id_, error)
            yield image, self._checked(label, id_)

    def replacing(self, ids: np.ndarray, part_fn: RowPartFn) -> Iterator[tuple[Decoded, int]]:
        """Yields (image, label) of each id, or of the next one that can be read."""
        for row, (id_, (image, label)) in enumerate(zip(ids.tolist(), self.decoded(ids, part_fn), strict=True)):
            while image is None:
                id_ = (id_ + 1) % self.source.num_examples
                image, label = next(self.decoded(np.array([id_]), part_fn, row))
            yield image, label

    def _checked(self, label: int, id_: int) -> int:
        num_classes = self.source.num_classes
        if num_classes is None:
            return label
        if not -1 <= label < num_classes:
            raise DataError(
                f"{self.source.example_name(id_)} has the label {label}, but {self.source.name} has {num_classes} "
                f"classes: expected 0 to {num_classes - 1}, or -1 for an example without a label"
            )
        if label < 0 and self._labels_for is not None:
            raise DataError(
                f"{self.source.example_name(id_)} has no label (-1), but config.objective.name={self._labels_for!r} "
                "needs the label of every training example"
            )
        return label

    @contextlib.contextmanager
    def counting_all(self) -> Iterator[None]:
        """Raises the error about too many bad images at the end alone, so that it names all of them."""
        self._counts_all = True
        yield
        self._counts_all = False
        self._check()

    def _count(self, id_: int, error: BadImage) -> None:
        with self._lock:
            if id_ not in self._bad:
                self._bad[id_] = self.source.example_name(id_)
                logging.warning("cannot read %s: %s", self._bad[id_], error)
            if not self._counts_all:
                self._check()

    def _check(self) -> None:
        count, total, fraction = len(self._bad), self.source.num_examples, self._max_bad_fraction
        if count < total and count <= max(fraction * total, 1 if fraction else 0):
            return
        names = ", ".join(self.bad[:_NAMED]) + f" and {count - _NAMED} more" * (count > _NAMED)
        if count == total:
            raise DataError(f"none of the {total} images of {self.source.name} can be read: {names}")
        raise DataError(
            f"{count} of {total} images of {self.source.name} cannot be read, more than "
            f"config.source.max_bad_fraction={fraction} allows: {names}"
        )


def with_bit_depth(source: Source, bit_depth: int | None) -> Source:
    """Returns the source with the bits that are used in files of more than 8, and with the sizes of a sample of files.

    Args:
      source: any source. Arrays have 8 bits.
      bit_depth: number of bits; None takes the least of 8, 12 and 16 that hold what the sample has, and says so.
    """
    sampled = [(size_of(image), largest_value(image)) for image in _sampled(source)]
    source = dataclasses.replace(source, sizes=tuple(size for size, _ in sampled if size))
    found = [value for _, value in sampled if value is not None]
    if not found:
        return source if bit_depth is None else dataclasses.replace(source, bit_depth=bit_depth)
    least = next(bits for bits in (8, 12, BIT_DEPTH, 32) if max(found) < 2**bits)
    depth = bit_depth or min(least, BIT_DEPTH)
    remark = (
        f"{source.name}: values up to {max(found):,} in {len(found)} files of more than 8 bits, read as {depth} bits"
    )
    unused = bool(np.median(found) < 2**depth // 4)
    remark += "; most of that range is not used" * unused
    return dataclasses.replace(
        source,
        bit_depth=depth,
        fingerprint=source.fingerprint if depth == BIT_DEPTH else f"{depth} bits of {source.fingerprint}",
        remarks=(*source.remarks, *[f"{remark} (config.source.bit_depth)"] * (bit_depth is None or unused)),
    )


def share_cut(source: Source) -> float:
    """Estimates the share of the median image that its central square leaves out, in [0, 1). Decodes nothing."""
    return float(np.median([1 - min(size) / max(size) for size in source.sizes] or [0]))


def median_side(source: Source) -> float | None:
    """Estimates the median of the shorter sides of the images, in pixels; None if none can be read."""
    return float(np.median(list(map(min, source.sizes)))) if source.sizes else None


def _sampled(source: Source) -> Iterator[bytes | np.ndarray]:
    """Yields the images of the sample, one by one, because they may be large."""
    return (source.read(np.array([id_]))[0][0] for id_ in _sample(source))


def _sample(source: Source) -> np.ndarray:
    return np.arange(source.num_examples)[:: -(-source.num_examples // _SAMPLE)]


def load(reader: Reader, cache_bytes: int, num_threads: int) -> tuple[Ragged, np.ndarray] | None:
    """Decodes a whole split to images and labels, int32 [N]. The next readable example replaces a bad one.

    Returns None if they take more than `cache_bytes`.
    """
    with reader.counting_all():
        return _load(reader, cache_bytes, num_threads)


def _load(reader: Reader, cache_bytes: int, num_threads: int) -> tuple[Ragged, np.ndarray] | None:
    source = reader.source
    everything = np.arange(source.num_examples)
    sizes = [image.pixels.nbytes for image, _ in reader.decoded(_sample(source)) if image]
    estimate = float(np.mean(sizes or [0])) * len(everything)
    if estimate > cache_bytes:
        return None
    capacity = min(cache_bytes, int(1.5 * estimate) + (1 << 24))
    pixels = np.empty((capacity // reader.channels, reader.channels), np.uint8)  # costs nothing until written to
    offsets, heights, widths, labels = np.zeros((4, len(everything)), np.int64)
    used = 0
    for ids, decoded in in_chunks(source, lambda ids: list(reader.decoded(ids)), num_threads, "decoding"):
        for id_, (image, label) in zip(ids, decoded, strict=True):
            labels[id_] = label
            if image is None:
                continue
            heights[id_], widths[id_], offsets[id_] = image.height, image.width, used
            used += heights[id_] * widths[id_]
            if used > len(pixels):
                return None
            pixels[offsets[id_] : used] = image.pixels.reshape(-1, reader.channels)
    good = np.flatnonzero(heights)
    if not len(good):
        return None  # `counting_all` raises
    entry = good[np.searchsorted(good, everything) % len(good)]  # its own, or that of the next readable image
    heights, widths, corners = heights[entry], widths[entry], np.zeros_like(entry)
    boxes = np.stack([corners, corners, heights, widths], axis=1)
    images = Ragged(pixels[:used], offsets[entry], heights, widths, boxes, np.ones_like(entry))
    return images, labels[entry].astype(np.int32)


def in_chunks(
    source: Source, function: Callable[[np.ndarray], _Result], num_threads: int, doing: str
) -> Iterator[tuple[np.ndarray, _Result]]:
    """Calls a function with the ids of all examples, a chunk at a time, in threads. It shows what it is `doing`.

    Yields:
      The ids of a chunk, int64 [n], and what the function returned, in order.
    """
    everything = np.arange(source.num_examples)
    chunks = [everything[i : i + _CHUNK] for i in range(0, len(everything), _CHUNK)]
    pool = futures.ThreadPoolExecutor(num_threads)
    try:
        with tqdm(total=len(everything), desc=f"{doing} {source.name}", unit=" images", delay=2, disable=None) as bar:
            for ids, result in zip(chunks, pool.map(function, chunks), strict=True):
                yield ids, result
                bar.update(len(ids))
    finally:
        pool.shutdown(cancel_futures=True)


def all_labels(source: Source, num_threads: int) -> np.ndarray:
    """Returns the labels of all examples, int64 [N]. It reads the whole split, undecoded, if they are not known."""
    if source.labels is not None:
        return source.labels
    chunks = in_chunks(source, lambda ids: [label for _, label in source.read(ids)], num_threads, "reading labels of")
    return np.concatenate([np.array(labels, np.int64) for _, labels in chunks])

"""Finds images that are in two splits or in two classes: the same file again, and near copies by a perceptual hash.

The hash is dHash (Krawetz 2013, "Kind of Like That"): the image is averaged to 9 x 8 cells, and each of 64 bits says if
a cell is brighter than its left neighbour. A copy that was encoded again or resized differs in few bits. One that was
flipped, turned, cropped or made brighter is mostly not found.

Some pictures share a hash by chance, above all flat ones. So the colours of the cells must agree, too.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from big_distill.data import Source
from big_distill.data.decode import BadImage, decode_part
from big_distill.data.jpeg import Box, Part, largest_reduction
from big_distill.data.reading import in_chunks

TRAIN = "train"
MAX_DISTANCE = 6  # bits of 64
_MAX_DIFFERENCE = 0.2  # root mean square of the differences of the cells, as a share of their contrast
_MIN_SIDE = 32  # px: a smaller image has no near copies, because digits of 28 px are all alike
_DECODED_SIDE = 64  # px: a JPEG is decoded at a fraction of its size that leaves so many
_MIN_CONTRAST = 4.0  # grey levels, the standard deviation of the cells: a flatter image has no near copies
_MIN_SECONDS = 5.0  # time after which the rest is estimated
_CANDIDATES = 1 << 17  # pairs that are compared at a time
_EXAMINED = "examined"


class _TooLong(Exception):
    """The search takes more time than it may."""


class Duplicate(NamedTuple):
    """Describes an image that is there twice: a line of the file. Numbers count within a split, from 0.

    kind: 'exact' for the same bytes, else 'near'.
    distance: number of bits, of 64, in which the hashes differ.
    """

    kind: str
    distance: int
    split: str
    number: int
    file: str
    class_name: str
    other_split: str
    other_number: int
    other_file: str
    other_class_name: str


class Prints(NamedTuple):
    """Holds what is compared of the images of a split.

    content: uint64 [N], a hash of the file or of the pixels of an array; 0 for no bytes.
    cells: uint8 [N, 8, 9, 3], the mean colours.
    comparable: bool [N], True for images that may have near copies.
    label: int64 [N], -1 without one.
    """

    content: np.ndarray
    cells: np.ndarray
    comparable: np.ndarray
    label: np.ndarray

    def of(self, ids: np.ndarray) -> Prints:
        """Returns those of some examples."""
        return Prints(*(values[ids] for values in self))


def find(splits: Mapping[str, Source], num_threads: int, seconds: float = np.inf) -> list[Duplicate] | None:
    """Finds the images that are in two splits, and those of the training split that are in two of its classes.

    Args:
      splits: the splits by name; `TRAIN` is that which a student learns from.
      num_threads: number of threads that read and decode.
      seconds: longest time that it may take.

    Returns:
      For each image its closest copy in each other split that comes later, and for each training image its closest copy
      in another class; None if all that would take more than `seconds`.
    """
    pairs = [*itertools.combinations(splits, 2), *[(TRAIN, TRAIN)] * bool(splits[TRAIN].num_classes)]
    needed = {name: splits[name] for name in splits if any(name in pair for pair in pairs)}
    begin, found = time.monotonic(), []
    try:
        prints = _all_prints(needed, num_threads, seconds)
        for split, other in pairs:
            for kind, distance, i, j in _closest(prints[split], prints[other], split == other, begin + seconds):
                sides = (
                    (name, number, splits[name].example_name(number), _class_name(splits[name], prints[name], number))
                    for name, number in ((split, i), (other, j))
                )
                found.append(Duplicate(kind, distance, *next(sides), *next(sides)))
    except _TooLong:
        return None
    return found


def to_csv(found: Sequence[Duplicate], splits: Mapping[str, Source]) -> bytes:
    """Writes the duplicates as a table, under a line for each split that was examined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([Duplicate._fields, *_examined(splits), *found])
    return text.getvalue().encode(errors="surrogateescape")


def from_csv(data: bytes, splits: Mapping[str, Source]) -> list[Duplicate] | None:
    """Reads the table that `to_csv` wrote. Returns None if it is of other splits, or not such a table."""
    try:
        header, *rows = csv.reader(io.StringIO(data.decode(errors="surrogateescape"), newline=""))
        examined = [row for row in rows if row[0] == _EXAMINED]
        if tuple(header) != Duplicate._fields or examined != [list(map(str, row)) for row in _examined(splits)]:
            return None
        found = rows[len(examined) :]
        return [Duplicate(a, int(b), c, int(d), e, f, g, int(h), i, j) for a, b, c, d, e, f, g, h, i, j in found]
    except (ValueError, TypeError, IndexError, csv.Error):
        return None


def _examined(splits: Mapping[str, Source]) -> list[tuple[str | int, ...]]:
    return [
        (_EXAMINED, "", name, source.num_examples, source.fingerprint, *[""] * 5) for name, source in splits.items()
    ]


def described(found: Sequence[Duplicate], splits: Mapping[str, Source]) -> str:
    """Says in a few words what was found; '' for nothing."""
    parts = []
    for split, other in itertools.combinations(splits, 2):
        ours = [row for row in found if (row.split, row.other_split) == (split, other)]
        exact = sum(row.kind == "exact" for row in ours)
        if ours:
            parts.append(f"{split} and {other} share {len(ours):,} ({len(ours) - exact:,} near copies)")
    named = [{row.class_name, row.other_class_name} for row in found]
    if contradicting := sum(len(names) == 2 and "" not in names for names in named):
        parts.append(f"{contradicting:,} in two classes")
    return ", ".join(parts)


def _class_name(source: Source, prints: Prints, number: int) -> str:
    label = prints.label[number]
    return source.class_names[label] if source.num_classes and 0 <= label < len(source.class_names) else ""


def _all_prints(splits: Mapping[str, Source], num_threads: int, seconds: float) -> dict[str, Prints]:
    """Makes the prints of all splits. Raises _TooLong as soon as that seems to take more than `seconds`."""
    begin, done, total = time.monotonic(), 0, sum(source.num_examples for source in splits.values())
    prints = {}
    for name, source in splits.items():
        parts = []
        for ids, part in in_chunks(source, functools.partial(_prints_of, source), num_threads, "comparing"):
            parts.append(part)
            done += len(ids)
            elapsed = time.monotonic() - begin
            if elapsed > min(_MIN_SECONDS, seconds) and elapsed * total > seconds * done:
                raise _TooLong
        prints[name] = Prints(*map(np.concatenate, zip(*parts, strict=True)))
    return prints


def _prints_of(source: Source, ids: np.ndarray) -> Prints:
    examples = source.read(ids)
    content, label = np.zeros(len(examples), np.uint64), np.empty(len(examples), np.int64)
    cells, comparable = np.zeros((len(examples), 8, 9, 3), np.uint8), np.zeros(len(examples), bool)
    for row, (data, label_of_row) in enumerate(examples):
        label[row] = label_of_row
        raw = data if isinstance(data, bytes) else repr(data.shape).encode() + data.tobytes()
        if raw:
            content[row] = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
        if isinstance(data, bytes) or min(data.shape[:2]) >= _MIN_SIDE:
            try:
                image = decode_part(data, 3, _reduced)
            except BadImage:
                continue
            comparable[row] = min(image.height, image.width) >= _MIN_SIDE
            cells[row] = np.asarray(Image.fromarray(image.pixels).resize((9, 8), Image.Resampling.BOX))
    return Prints(content, cells, comparable & (_contrast(cells) >= _MIN_CONTRAST), label)


def _reduced(height: int, width: int) -> Part:
    return Part(reduction=largest_reduction(Box(0, 0, height, width), _DECODED_SIDE))


def _contrast(cells: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of the cells from their mean colour, float [N]."""
    return np.sqrt(cells.var(axis=(1, 2), dtype=np.float32).mean(-1))


def _hashes(cells: np.ndarray) -> np.ndarray:
    """Returns dHash, uint64 [N]."""
    grey = cells @ np.array([0.299, 0.587, 0.114], np.float32)
    bits = (grey[:, :, 1:] > grey[:, :, :-1]).reshape(-1, 64)
    return np.packbits(bits, axis=1).view(np.uint64).reshape(-1)


def _closest(
    a: Prints, b: Prints, across_classes: bool, deadline: float = np.inf
) -> Iterator[tuple[str, int, int, int]]:
    """Yields (kind, distance, i, j) for each image i of `a` that has a copy in `b`; j is the closest."""
    rows_a, rows_b = (np.arange(len(prints.label)) for prints in (a, b))
    if across_classes:  # an image without a label contradicts none
        rows_a, rows_b = rows_a[a.label >= 0], rows_b[b.label >= 0]
        a, b = a.of(rows_a), b.of(rows_b)
    same = _same_content(a, b, across_classes)
    for i in np.flatnonzero(same >= 0):
        yield "exact", 0, int(rows_a[i]), int(rows_b[same[i]])
    rest, others = np.flatnonzero((same < 0) & a.comparable), np.flatnonzero(b.comparable)
    near, distance = _nearest(a.of(rest), b.of(others), across_classes, deadline)
    for i in np.flatnonzero(near >= 0):
        yield "near", int(distance[i]), int(rows_a[rest[i]]), int(rows_b[others[near[i]]])


def _same_content(a: Prints, b: Prints, across_classes: bool) -> np.ndarray:
    """Finds an image of `b` with the content of each of `a`, in another class if asked: int64 [N], -1 for none."""
    order = np.lexsort((b.label, b.content))
    ordered = b.content[order]
    first, after = (np.searchsorted(ordered, a.content, side) for side in ("left", "right"))
    there = (first < after) & (a.content != 0)
    lowest, highest = order[np.where(there, first, 0)], order[np.where(there, after - 1, 0)]  # labels of a content
    if across_classes:
        lowest = np.where(b.label[lowest] == a.label, highest, lowest)
        there &= b.label[lowest] != a.label
    return np.where(there, lowest, -1)


def _nearest(a: Prints, b: Prints, across_classes: bool, deadline: float) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest copy in `b` of each image of `a`: its index (-1 for none) and distance, int64 [N].

    The bits are dealt out to `MAX_DISTANCE` + 1 bands. Hashes that differ in no more bits agree in a whole band
    (Norouzi et al. 2012, "Fast Search in Hamming Space with Multi-Index Hashing"). So only such pairs are compared. The
    cells of a pair are first compared by the means of blocks, whose error is never above that of the cells.
    """
    hash_a, hash_b, blocks_a, blocks_b = _hashes(a.cells), _hashes(b.cells), _blocks(a.cells), _blocks(b.cells)
    limit_a, limit_b = (_MAX_DIFFERENCE * _contrast(prints.cells) for prints in (a, b))
    none = np.iinfo(np.int64).max
    best = np.full(len(hash_a), none)  # distance * len(b) + index
    for band in range(MAX_DISTANCE + 1):
        mask = np.uint64(sum(1 << bit for bit in range(band, 64, MAX_DISTANCE + 1)))
        for i, j in _equal_pairs(hash_a & mask, hash_b & mask):
            if time.monotonic() > deadline:
                raise _TooLong
            kept = np.bitwise_count(hash_a[i] ^ hash_b[j]) <= MAX_DISTANCE
            if across_classes:
                kept &= a.label[i] != b.label[j]
            for cells_a, cells_b in ((blocks_a, blocks_b), (a.cells, b.cells)):
                i, j = i[kept], j[kept]
                error = np.square(cells_a[i].astype(np.float32) - cells_b[j]).mean(axis=(1, 2, 3))
                kept = np.sqrt(error) <= np.minimum(limit_a[i], limit_b[j])
            i, j = i[kept], j[kept]
            np.minimum.at(best, i, np.bitwise_count(hash_a[i] ^ hash_b[j]).astype(np.int64) * len(hash_b) + j)
    distance, index = np.divmod(best, max(len(hash_b), 1))
    return np.where(best == none, -1, index), distance


def _blocks(cells: np.ndarray) -> np.ndarray:
    """Returns the mean colours of blocks of 4 x 3 cells, float32 [N, 2, 3, 3]."""
    return cells.reshape(-1, 2, 4, 3, 3, 3).mean(axis=(2, 4), dtype=np.float32)


def _equal_pairs(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the indices (i, j) of all pairs with a[i] == b[j], about `_CANDIDATES` at a time."""
    order_a, order_b = np.argsort(a), np.argsort(b)
    first, after = (np.searchsorted(b[order_b], a[order_a], side) for side in ("left", "right"))
    counts = after - first
    order_a, first, counts = order_a[counts > 0], first[counts > 0], counts[counts > 0]
    ends = np.cumsum(counts)
    cuts = np.flatnonzero(np.diff(ends // _CANDIDATES)) + 1
    for rows in np.split(np.arange(len(counts)), cuts):
        if len(rows):
            n = counts[rows]
            within = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
            yield np.repeat(order_a[rows], n), order_b[np.repeat(first[rows], n) + within]

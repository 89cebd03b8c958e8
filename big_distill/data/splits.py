"""Reads a training split in one of three ways: cached, streamed, resident. Each is a class with the same `read`.

A split whose decoded images fit `cache_bytes` is decoded once, and batches are gathered from it. A larger one is read
and decoded batch by batch. Both ways give the same pixels, unless `view.reduced_decoding` is set, which streams every
split. A resident split lives on the devices, and a batch says what to crop there.
"""

from __future__ import annotations

import math

import numpy as np

from big_distill.config import ViewConfig
from big_distill.data import Source, jpeg
from big_distill.data.draws import Draws, fitted_boxes
from big_distill.data.reading import Reader, RowPartFn, whole
from big_distill.data.resample import Ragged, central_view, crop_resize, pack_groups
from big_distill.errors import DataError
from big_distill.state import Resident

HostBatch = dict[str, np.ndarray]

Branches = dict[str, Draws | None]
"""Maps '' (the student, or everybody) and 'teacher_' (if it has its own) to draws; None: constant central views."""


class CachedSplit:
    """Holds a split that was decoded once, and gathers batches from it.

    images: decoded images of all examples.
    label: int32 [N]; None without labels.
    central: uint8 [N, S, S, C], all central views; None if none are shown, or they do not fit `cache_bytes` too.
    """

    def __init__(self, source: Source, decoded: tuple[Ragged, np.ndarray], view: ViewConfig, cache_bytes: int):
        self.images, labels = decoded
        self.label = None if source.num_classes is None else labels
        self.central: np.ndarray | None = None
        self.view = view
        bytes_ = self.images.pixels.nbytes + source.num_examples * math.prod(view_shape(view))
        if _shows_central(view) and bytes_ <= cache_bytes:
            everything = np.arange(source.num_examples)
            self.central = central_view(self.images, everything, view.resize, view.image_size, view.fit)

    def read(self, ids: np.ndarray, branches: Branches) -> HostBatch:
        """Gathers the pixels of every branch, and the labels."""
        batch = {
            f"{branch}pixels": _views(self.images, ids, draws, self.view, self.central)
            for branch, draws in branches.items()
        }
        return batch if self.label is None else batch | {"label": self.label[ids]}


class StreamedSplit:
    """Reads and decodes every batch of a split, and keeps none."""

    def __init__(self, reader: Reader, view: ViewConfig):
        self._reader, self.view = reader, view
        if not _shows_central(view):
            jpeg.part_decoder()  # loaded here, before there are threads

    def read(self, ids: np.ndarray, branches: Branches) -> HostBatch:
        """Reads the pixels of every branch, and the labels."""
        shape = len(ids), *view_shape(self.view)
        batch = {f"{branch}pixels": np.empty(shape, np.uint8) for branch in branches}
        label, start = np.empty(len(ids), np.int32), 0
        for images, labels in pack_groups(self._reader.replacing(ids, self._part_fn(ids, branches))):
            stop = start + len(labels)
            label[start:stop] = labels
            for branch, draws in branches.items():
                part = draws and draws.part(start, stop)
                batch[f"{branch}pixels"][start:stop] = _views(images, np.arange(len(labels)), part, self.view)
            start = stop
        return batch if self._reader.source.num_classes is None else batch | {"label": label}

    def _part_fn(self, ids: np.ndarray, branches: Branches) -> RowPartFn:
        """Returns a function that says which part of its image each row of a batch shows."""
        view, reader = self.view, self._reader
        if _shows_central(view):
            return whole  # a central view shows most of an image

        def boxes(heights: np.ndarray, widths: np.ndarray, start: int, stop: int) -> np.ndarray:
            drawn = [draws.part(start, stop) for draws in branches.values() if draws]
            return np.stack([_boxes(draws, heights, widths, view) for draws in drawn], 1)

        sizes = reader.sizes(ids)  # zeros if unknown; boxes take 58 µs an image one by one, 1.7 µs at once
        at_once = boxes(sizes[:, 0], sizes[:, 1], 0, len(ids))

        def part(row: int, height: int, width: int) -> jpeg.Part:
            known = sizes[row].tolist() == [height, width]
            drawn = at_once[row] if known else boxes(np.array([height]), np.array([width]), row, row + 1)[0]
            own = [jpeg.visible(jpeg.Box(*box), height, width) for box in drawn.tolist()]
            if not view.reduced_decoding:
                return jpeg.Part(jpeg.union(own))
            return jpeg.Part(jpeg.union(own), min(jpeg.largest_reduction(box, view.image_size) for box in own))

        return part


class ResidentSplit:
    """Says for each batch what to crop on the devices, where the pixels of the split are."""

    def __init__(self, heights: np.ndarray, widths: np.ndarray, view: ViewConfig):
        """Keeps only the sizes of the images, int [N]."""
        self._heights, self._widths, self.view = heights, widths, view

    def read(self, ids: np.ndarray, branches: Branches) -> HostBatch:
        """Returns the examples, boxes and flips of every branch."""
        batch = {}
        for branch, draws in branches.items():
            batch[f"{branch}id"] = ids.astype(np.int32)
            if draws and self.view.crop == "inception":
                boxes = _boxes(draws, self._heights[ids], self._widths[ids], self.view)
                batch[f"{branch}box"] = boxes.astype(np.int32)
            if draws and self.view.flip:
                batch[f"{branch}flip"] = draws.flip
        return batch


def on_devices(split: CachedSplit | StreamedSplit, name: str, cache_bytes: int) -> Resident:
    """Returns all that is shown of the split `name`, as a device keeps it.

    Raises:
      DataError: it takes more than `cache_bytes`.
    """
    takes, view = " takes", split.view
    if isinstance(split, CachedSplit) and (split.central is not None or not _shows_central(view)):
        (count, height, width, channels) = shape = split.images.padded_shape
        if view.crop != "inception" or math.prod(shape) <= cache_bytes:
            reach_beyond = view.crop == "inception" and view.fit == "pad"
            sizes = np.stack([split.images.heights, split.images.widths], axis=1).astype(np.int32)
            return Resident(
                pixels=split.images.padded().reshape(count, -1) if view.crop == "inception" else None,
                sizes=sizes if reach_beyond else None,
                central=None if split.central is None else split.central.reshape(count, -1),
                label=split.label,
                shape=(height, width, channels),
            )
        takes = f", padded to {height} x {width} px each, takes {math.prod(shape):,} bytes,"
    limit = f"config.source.cache_bytes={cache_bytes:,}"
    raise DataError(f"config.source.resident=True, but {name}{takes} more than {limit}")


def view_shape(view: ViewConfig) -> tuple[int, int, int]:
    """Returns (S, S, C) of a view."""
    return view.image_size, view.image_size, view.channels


def _shows_central(view: ViewConfig) -> bool:
    """Returns True if some branch is shown central views. All of each image is then decoded."""
    return view.crop == "central" or view.regime == "fixed"


def _views(
    images: Ragged, rows: np.ndarray, draws: Draws | None, view: ViewConfig, central: np.ndarray | None = None
) -> np.ndarray:
    """Makes views [B, S, S, C] under these draws, or constant central ones. It takes those from `central` if given."""
    if draws and view.crop == "inception":
        boxes = _boxes(draws, images.heights[rows], images.widths[rows], view)
        return crop_resize(images, rows, boxes, view.image_size, draws.flip if view.flip else None)
    views = central_view(images, rows, view.resize, view.image_size, view.fit) if central is None else central[rows]
    if draws and view.flip:
        views[draws.flip] = views[draws.flip, :, ::-1]
    return views


def _boxes(draws: Draws, heights: np.ndarray, widths: np.ndarray, view: ViewConfig) -> np.ndarray:
    return fitted_boxes(draws, heights, widths, (view.area_min, view.area_max), view.fit)

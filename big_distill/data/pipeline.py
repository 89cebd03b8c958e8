"""From a source and a config to batches: every process makes its contiguous part of the global batch.

One grain element is one chunk: the batches that are sent together, mostly one. A split whose decoded images fit
`cache_bytes` is decoded once and then only gathered from; a larger one is read and decoded batch by batch. Both ways
give the same pixels. A `resident` split is sent to the devices once, and a batch says what to crop there.
`view.reduced_decoding` gives other pixels: such a split is always read batch by batch, so that the memory of a host
does not change what is learned.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import grain
import jax
import numpy as np

from big_distill.config import Config, SourceConfig, ViewConfig
from big_distill.data import Source, jpeg
from big_distill.data.draws import Draws, Stream, inception_boxes
from big_distill.data.reading import DecodedSplit, Reader, RowPartFn, load, whole
from big_distill.data.transforms import Decoded, Ragged, central_view, crop_resize, pack_groups
from big_distill.errors import DataError
from big_distill.state import Resident

HostBatch = dict[str, np.ndarray]


def check_source(config: Config, source: Source, needs_labels: bool) -> None:
    """Raises DataError unless the training split is what the config says it is, and has the labels that are needed."""
    expected = config.source.num_train_examples
    if source.num_examples != expected:
        raise DataError(f"config.source.num_train_examples={expected}, but {source.name} has {source.num_examples}")
    check_classes(config, source)
    if needs_labels and source.num_classes is None:
        raise DataError(f"config.objective.name={config.objective.name!r} needs labels, but {source.name} has none")


def check_classes(config: Config, source: Source) -> None:
    """Raises DataError unless a split has as many classes as the config says, or no labels."""
    if source.num_classes not in (None, config.num_classes):
        names = f": {', '.join(source.class_names[:9])}{', ...' * (len(source.class_names) > 9)}"
        raise DataError(
            f"config.num_classes={config.num_classes}, but {source.name} has {source.num_classes}"
            f"{names if source.class_names else ''}"
        )


def class_names_of(source: Source, eval_data: Sequence[EvalPipeline]) -> tuple[str, ...]:
    """In the order of the labels; () if the data have no names.

    Raises:
      DataError: training and evaluation number their classes differently.
    """
    ours, theirs = source.class_names, next((data.class_names for data in eval_data), ())
    if ours and theirs and ours != theirs:
        index = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise DataError(
            f"training and evaluation number their classes differently: class {index} of {source.name} is "
            f"{ours[index]!r}, of the evaluation split {theirs[index]!r}"
        )
    return ours or theirs


def abstract_chunk(config: Config, labelled: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global training chunk of one step, whose pixels the host sends, without the data."""
    shape = (1, config.batch_size, *_view_shape(config.view))
    branches = ("pixels", "teacher_pixels") if config.view.regime in ("fixed", "independent") else ("pixels",)
    chunk = {name: jax.ShapeDtypeStruct(shape, np.uint8) for name in branches}
    chunk |= {"step": jax.ShapeDtypeStruct((1,), np.int32), "lam": jax.ShapeDtypeStruct((1,), np.float32)}
    return chunk | ({"label": jax.ShapeDtypeStruct(shape[:2], np.int32)} if labelled else {})


def abstract_draws(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    """The same of a chunk for a resident split: what is chosen of it, and no pixels."""
    view, shape = config.view, (1, config.batch_size)
    chunk = {"step": jax.ShapeDtypeStruct((1,), np.int32), "lam": jax.ShapeDtypeStruct((1,), np.float32)}
    for branch in ("", "teacher_") if view.regime in ("fixed", "independent") else ("",):
        chunk[f"{branch}id"] = jax.ShapeDtypeStruct(shape, np.int32)
        drawn = not branch or view.regime == "independent"
        if drawn and view.crop == "inception":
            chunk[f"{branch}box"] = jax.ShapeDtypeStruct((*shape, 4), np.int32)
        if drawn and view.flip:
            chunk[f"{branch}flip"] = jax.ShapeDtypeStruct(shape, np.bool_)
    return chunk


def abstract_eval_batch(config: Config, batch_size: int, labelled: bool) -> dict[str, jax.ShapeDtypeStruct]:
    """The same of a global evaluation batch."""
    batch = {"pixels": jax.ShapeDtypeStruct((batch_size, *_view_shape(config.view)), np.uint8)}
    batch["mask"] = jax.ShapeDtypeStruct((batch_size,), np.bool_)
    return batch | ({"label": jax.ShapeDtypeStruct((batch_size,), np.int32)} if labelled else {})


class TrainPipeline:
    """Training batches, from any step on; `stream` is what they draw."""

    def __init__(self, config: Config, source: Source, process_index: int = 0, process_count: int = 1):
        """Decodes nothing yet. `config` is a resolved one."""
        self.stream = Stream(config.seed, source.num_examples, config.batch_size, config.view.mixup or 0.0)
        self._total_steps, self._steps_per_dispatch = config.total_steps, config.steps_per_dispatch
        self._view, self._options = config.view, config.source
        self._source = source
        self._part = _part(config.batch_size, process_index, process_count)
        self._reader = Reader(source, config.view.channels, config.source.max_bad_fraction)

    @functools.cached_property
    def _cache(self) -> DecodedSplit | None:
        """The decoded split, if it fits and is decoded whole."""
        return None if self._view.reduced_decoding else load(self._reader, self._options)

    @functools.cached_property
    def _central(self) -> np.ndarray | None:
        """All central views [N, S, S, C], if any are wanted and they fit too."""
        view, num_examples = self._view, self._source.num_examples
        if not self._cache or not (view.crop == "central" or view.regime == "fixed"):
            return None
        bytes_ = self._cache.images.pixels.nbytes + num_examples * math.prod(_view_shape(view))
        if bytes_ > self._options.cache_bytes:
            return None
        return _central_view(self._cache.images, np.arange(num_examples), view)

    @property
    def name(self) -> str:
        """Of the source."""
        return self._source.name

    @property
    def bad(self) -> tuple[str, ...]:
        """Names of the images found unreadable so far; each was replaced by the next one, with that one's label."""
        return self._reader.bad

    def example_names(self, step: int) -> list[str]:
        """Names of the examples of a step's global batch."""
        return [self._source.example_name(int(i)) for i in self.stream.ids(step)]

    def chunks(self, start_step: int) -> Iterator[HostBatch]:
        """This process's part of every chunk from `start_step` to the end of the run.

        Decodes the split first if it fits.

        Yields:
          The batches of `steps_per_dispatch` steps, or of those up to the next multiple of it or to the end, with
          `state.Batch`'s keys: [K, ...], or [K, B, ...].
        """
        _ = self._central  # here, before several threads want it
        if not self._cache and self._reads_parts:
            jpeg.part_decoder()  # likewise
        every, make = self._steps_per_dispatch, self.draw if self._options.resident else self.batch
        chunks = range(start_step // every, -(-self._total_steps // every) if start_step < self._total_steps else 0)

        def chunk(index: int) -> HostBatch:
            steps = range(max(start_step, index * every), min(self._total_steps, (index + 1) * every))
            batches = [make(step) for step in steps]
            if len(batches) == 1:  # not copied
                return {key: value[None] for key, value in batches[0].items()}
            return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}

        ahead = max(self._options.num_threads, -(-self._options.prefetch // every))
        return _prefetched(chunks, chunk, self._options.num_threads, ahead)

    def resident(self) -> Resident | None:
        """The decoded split, for every device; None if it stays on the host.

        Raises:
          DataError: it takes more than `cache_bytes`.
        """
        if not self._options.resident:
            return None
        branches = self._draws(0)[1].values()
        cropped = any(draws and self._view.crop == "inception" for draws in branches)
        central = any(not (draws and self._view.crop == "inception") for draws in branches)
        limit, count, cache = self._options.cache_bytes, self._source.num_examples, self._cache
        shape = cache.images.padded_shape if cache else (0, 0, 0)
        if cache is None or (central and self._central is None) or (cropped and count * math.prod(shape) > limit):
            padded = f", padded to {shape[0]} x {shape[1]} px each," if cache and cropped else ""
            needed = f"{count * math.prod(shape):,} bytes, " if padded else ""
            raise DataError(
                f"config.source.resident=True, but {self._source.name}{padded} takes {needed}more than "
                f"config.source.cache_bytes={limit:,}"
            )
        return Resident(
            pixels=cache.images.padded().reshape(count, -1) if cropped else None,
            central=self._central.reshape(count, -1) if self._central is not None else None,
            label=None if self._source.num_classes is None else cache.labels,
            shape=shape,
        )

    def forget_pixels(self) -> None:
        """Frees the decoded split, once it is on the devices: from here on there are only draws."""
        if self._cache:
            nothing = np.empty((0, self._view.channels), np.uint8)
            self._cache = self._cache._replace(images=dataclasses.replace(self._cache.images, pixels=nothing))
            self._central = None

    def batch(self, step: int) -> HostBatch:
        """This process's part of one batch, its pixels made here."""
        draws, branches = self._draws(step)
        if self._cache:
            label = self._cache.labels[draws.ids]
            views = {key: self._views(self._cache.images, draws.ids, d) for key, d in branches.items()}
        else:
            label, views = self._read(draws.ids, branches)
        batch = {"step": np.asarray(step, np.int32), "lam": np.asarray(draws.lam), **views}
        return batch if self._source.num_classes is None else batch | {"label": label}

    def draw(self, step: int) -> HostBatch:
        """This process's part of one batch, its pixels to be made from a `Resident` split."""
        draws, branches = self._draws(step)
        assert self._cache  # `resident` has seen to that
        heights, widths = self._cache.images.heights[draws.ids], self._cache.images.widths[draws.ids]
        batch = {"step": np.asarray(step, np.int32), "lam": np.asarray(draws.lam)}
        for key, own in branches.items():
            branch = key.removesuffix("pixels")
            batch[f"{branch}id"] = draws.ids.astype(np.int32)
            if own and self._view.crop == "inception":
                batch[f"{branch}box"] = self._boxes(own, heights, widths).astype(np.int32)
            if own and self._view.flip:
                batch[f"{branch}flip"] = own.flip
        return batch

    def _draws(self, step: int) -> tuple[Draws, dict[str, Draws | None]]:
        """This process's draws, and those that each branch's pixels are made with; None: constant central views."""
        draws = self.stream.draws(step).part(*self._part)
        branches: dict[str, Draws | None] = {"pixels": draws}
        if self._view.regime == "fixed":
            branches["teacher_pixels"] = None
        elif self._view.regime == "independent":
            branches["teacher_pixels"] = self.stream.draws(step, "teacher").part(*self._part)
        return draws, branches

    def _read(self, ids: np.ndarray, branches: dict[str, Draws | None]) -> tuple[np.ndarray, HostBatch]:
        """(labels, views) of a batch that is not in memory."""
        label = np.empty(len(ids), np.int32)
        views = {key: np.empty((len(ids), *_view_shape(self._view)), np.uint8) for key in branches}
        start = 0
        for images, labels in pack_groups(self._reader.replacing(ids, self._parts(ids, list(branches.values())))):
            stop = start + len(labels)
            label[start:stop] = labels
            for key, draws in branches.items():
                part = draws and draws.part(start, stop)
                views[key][start:stop] = self._views(images, np.arange(len(labels)), part)
            start = stop
        return label, views

    @property
    def _reads_parts(self) -> bool:
        """Whether less than whole images will do: of a central view little is outside."""
        return self._view.crop == "inception" and self._view.regime != "fixed"

    def _parts(self, ids: np.ndarray, branches: Sequence[Draws | None]) -> RowPartFn:
        """What of its image each row of a batch shows."""
        if not self._reads_parts:
            return whole

        def boxes(heights: np.ndarray, widths: np.ndarray, start: int, stop: int) -> np.ndarray:
            return np.stack([self._boxes(draws.part(start, stop), heights, widths) for draws in branches if draws], 1)

        sizes = self._reader.sizes(ids)  # as far as they are known: boxes take 58 µs an image one by one, 1.7 at once
        at_once = boxes(sizes[:, 0], sizes[:, 1], 0, len(ids))

        def part(row: int, height: int, width: int) -> jpeg.Part:
            known = sizes[row].tolist() == [height, width]
            drawn = at_once[row] if known else boxes(np.array([height]), np.array([width]), row, row + 1)[0]
            own = [jpeg.Box(*box) for box in drawn.tolist()]
            if not self._view.reduced_decoding:
                return jpeg.Part(jpeg.union(own))
            return jpeg.Part(jpeg.union(own), min(jpeg.largest_reduction(box, self._view.image_size) for box in own))

        return part

    def _boxes(self, draws: Draws, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        return inception_boxes(draws, heights, widths, (self._view.area_min, self._view.area_max))

    def _views(self, images: Ragged, rows: np.ndarray, draws: Draws | None) -> np.ndarray:
        """Views [B, S, S, C] under these draws, or the constant central ones."""
        view = self._view
        if draws and view.crop == "inception":
            boxes = self._boxes(draws, images.heights[rows], images.widths[rows])
            return crop_resize(images, rows, boxes, view.image_size, draws.flip if view.flip else None)
        views = self._central[rows] if self._central is not None else _central_view(images, rows, view)
        if draws and view.flip:
            views[draws.flip] = views[draws.flip, :, ::-1]
        return views


class EvalPipeline:
    """The central views of a split, every example once; iterate as often as you like.

    A batch has `pixels`, `mask` and, from a labelled source, `label`. `mask` is False for the padding of the last batch
    and for images that cannot be read. Every process yields `num_batches` batches of one shape; they are kept after the
    first pass if they fit `cache_bytes`.
    """

    def __init__(
        self,
        source: Source,
        view: ViewConfig,
        options: SourceConfig,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        """`batch_size` is global; of `options` only the cosmetic fields are read."""
        self.num_batches = -(-source.num_examples // batch_size)
        self._source, self._view, self._options, self._batch_size = source, view, options, batch_size
        self._part = _part(batch_size, process_index, process_count)
        self._reader = Reader(source, view.channels, options.max_bad_fraction)
        self._kept: list[HostBatch] = []

    @property
    def fingerprint(self) -> str:
        """Of its source."""
        return self._source.fingerprint

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the source, in the order of its labels."""
        return self._source.class_names

    @property
    def bad(self) -> tuple[str, ...]:
        """Names of the images found unreadable so far; they are masked out."""
        return self._reader.bad

    def __iter__(self) -> Iterator[HostBatch]:
        if self._kept:
            yield from self._kept
            return
        start, stop = self._part
        keep = self.num_batches * (stop - start) * math.prod(_view_shape(self._view)) <= self._options.cache_bytes
        batches = []
        for batch in _prefetched(
            range(self.num_batches), self._batch, self._options.num_threads, self._options.prefetch
        ):
            if keep:
                batches.append(batch)
            yield batch
        self._kept = batches

    def _batch(self, index: int) -> HostBatch:
        start, stop = self._part
        ids = np.arange(start, stop) + index * self._batch_size
        ids = ids[ids < self._source.num_examples]
        pixels = np.zeros((stop - start, *_view_shape(self._view)), np.uint8)
        label, mask = np.zeros(stop - start, np.int32), np.zeros(stop - start, bool)

        def readable() -> Iterator[tuple[Decoded, int]]:
            for row, (image, label_of_row) in enumerate(self._reader.decoded(ids)):
                label[row] = label_of_row
                if image is not None:
                    yield image, row

        for images, rows in pack_groups(readable()):
            pixels[rows] = _central_view(images, np.arange(len(rows)), self._view)
            mask[rows] = True
        batch = {"pixels": pixels, "mask": mask}
        return batch if self._source.num_classes is None else batch | {"label": label}


def _central_view(images: Ragged, rows: np.ndarray, view: ViewConfig) -> np.ndarray:
    return central_view(images, rows, view.resize, view.image_size)


def _view_shape(view: ViewConfig) -> tuple[int, int, int]:
    return view.image_size, view.image_size, view.channels


def _part(batch_size: int, process_index: int, process_count: int) -> tuple[int, int]:
    """Start and stop of a process's examples within a global batch."""
    size, rest = divmod(batch_size, process_count)
    if rest:
        raise ValueError(f"batch_size={batch_size} is not divisible by process_count={process_count}")
    return process_index * size, (process_index + 1) * size


def _prefetched(
    indices: range, make_fn: Callable[[int], HostBatch], num_threads: int, prefetch: int
) -> Iterator[HostBatch]:
    read_options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.range(indices.start, indices.stop).map(make_fn).to_iter_dataset(read_options))

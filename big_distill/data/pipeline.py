"""Makes batches of a source. Every process makes its contiguous part of the global batch.

One grain element is one chunk: the batches that are sent together, mostly one. A training split is read in one of the
three ways of `splits`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import grain
import jax
import numpy as np

from big_distill.config import Config, SourceConfig, ViewConfig
from big_distill.data import Source, splits
from big_distill.data.decode import Decoded
from big_distill.data.draws import Balance, Stream
from big_distill.data.reading import Reader, all_labels, load
from big_distill.data.resample import central_view, pack_groups
from big_distill.data.splits import CachedSplit, HostBatch, ResidentSplit, StreamedSplit, view_shape
from big_distill.errors import DataError
from big_distill.state import Resident

Split = CachedSplit | StreamedSplit | ResidentSplit
Shapes = dict[str, jax.ShapeDtypeStruct]


def abstract_draws(view: ViewConfig, batch_size: int) -> Shapes:
    """Returns shapes and dtypes of a global training chunk of one step, from a resident split: it holds only draws."""
    stream, size = Stream(0, 1, batch_size, 0.0), np.ones(1, np.int64)
    batch = _read(ResidentSplit(size, size, view), stream, 0, (0, batch_size))
    return {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in batch.items()}


def abstract_chunk(view: ViewConfig, batch_size: int, labelled: bool) -> Shapes:
    """Returns shapes and dtypes of a global training chunk of one step whose pixels the host sends."""
    drawn, shape = abstract_draws(view, batch_size), (1, batch_size)
    chunk = {name: drawn[name] for name in ("step", "lam")}
    for branch in ("", "teacher_"):
        if f"{branch}id" in drawn:
            chunk[f"{branch}pixels"] = jax.ShapeDtypeStruct((*shape, *view_shape(view)), np.uint8)
    return chunk | ({"label": jax.ShapeDtypeStruct(shape, np.int32)} if labelled else {})


def abstract_eval_batch(view: ViewConfig, batch_size: int, labelled: bool) -> Shapes:
    """Returns shapes and dtypes of a global evaluation batch."""
    batch = {"pixels": jax.ShapeDtypeStruct((batch_size, *view_shape(view)), np.uint8)}
    batch["mask"] = jax.ShapeDtypeStruct((batch_size,), np.bool_)
    return batch | ({"label": jax.ShapeDtypeStruct((batch_size,), np.int32)} if labelled else {})


class TrainPipeline:
    """Makes training batches, from any step on. `stream` is their order and augmentations."""

    def __init__(
        self,
        config: Config,
        source: Source,
        process_index: int = 0,
        process_count: int = 1,
        labels_for: str | None = None,
    ):
        """Decodes nothing yet. `config` must be resolved. `labels_for` names an objective that needs all labels.

        Raises:
          DataError: examples are drawn by class, but one has no label.
        """
        balance, mixup = _balance(source, config.source), config.view.mixup or 0.0
        self.stream = Stream(config.seed, source.num_examples, config.batch_size, mixup, balance)
        self._total_steps, self._steps_per_dispatch = config.total_steps, config.steps_per_dispatch
        self._view, self._options = config.view, config.source
        self.source = source
        self._part = _part(config.batch_size, process_index, process_count)
        self._reader = Reader(source, config.view.channels, config.source.max_bad_fraction, labels_for)

    @functools.cached_property
    def _split(self) -> CachedSplit | StreamedSplit:
        """Opens the split as the host reads it, in memory if it fits.

        `view.reduced_decoding` gives other pixels. Such a split is always streamed, so that the memory of a host does
        not change what is learned.
        """
        view, limit = self._view, self._options.cache_bytes
        decoded = None if view.reduced_decoding else load(self._reader, limit, self._options.num_threads)
        return CachedSplit(self.source, decoded, view, limit) if decoded else StreamedSplit(self._reader, view)

    @functools.cached_property
    def _drawn(self) -> ResidentSplit:
        """Opens the split that is on the devices."""
        assert isinstance(self._split, CachedSplit)  # else `resident` has raised DataError
        return ResidentSplit(self._split.images.heights, self._split.images.widths, self._view)

    @property
    def bad(self) -> tuple[str, ...]:
        """Names the images found unreadable so far. Each was replaced by the next readable one and its label."""
        return self._reader.bad

    def example_names(self, step: int) -> list[str]:
        """Names the examples of a step's global batch."""
        return [self.source.example_name(int(i)) for i in self.stream.ids(step)]

    def chunks(self, start_step: int) -> Iterator[HostBatch]:
        """Makes this process's part of every chunk from `start_step` to the end of the run.

        It decodes the split first if that fits.

        Yields:
          The batches of `steps_per_dispatch` steps, or of fewer, up to the next multiple of it or to the end. The keys
          are those of `state.Batch`, the shapes [K, ...] or [K, B, ...].
        """
        make = self.draw if self._options.resident else self.batch
        _ = self._drawn if self._options.resident else self._split  # made here, before several threads want it
        every = self._steps_per_dispatch
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
        """Returns the decoded split for every device, or None if it stays on the host.

        Raises:
          DataError: it takes more than `cache_bytes`.
        """
        if not self._options.resident:
            return None
        return splits.on_devices(self._split, self.source.name, self._options.cache_bytes)

    def forget_pixels(self) -> None:
        """Frees the decoded split once it is on the devices. From then on there are only draws."""
        _ = self._drawn  # keeps the sizes of the images
        del self._split

    def batch(self, step: int) -> HostBatch:
        """Makes this process's part of one batch, with its pixels."""
        return _read(self._split, self.stream, step, self._part)

    def draw(self, step: int) -> HostBatch:
        """Makes this process's part of one batch. A device makes its pixels later from a `Resident` split."""
        return _read(self._drawn, self.stream, step, self._part)


class EvalPipeline:
    """Makes the central views of a split, every example once. Iterate over it as often as you like.

    A batch has `pixels`, `mask` and, from a labelled source, `label`. `mask` is False for the padding of the last batch
    and for images that cannot be read. Every process yields `num_batches` batches of one shape. They are kept after the
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
        """Reads only the cosmetic fields of `options`. `batch_size` is global."""
        self.num_batches = -(-source.num_examples // batch_size)
        self.source, self._view, self._options, self._batch_size = source, view, options, batch_size
        self._part = _part(batch_size, process_index, process_count)
        self._reader = Reader(source, view.channels, options.max_bad_fraction)
        self._kept: list[HostBatch] = []

    @property
    def bad(self) -> tuple[str, ...]:
        """Names the images found unreadable so far. They are masked out."""
        return self._reader.bad

    def __iter__(self) -> Iterator[HostBatch]:
        if self._kept:
            yield from self._kept
            return
        options, (start, stop) = self._options, self._part
        keep = self.num_batches * (stop - start) * math.prod(view_shape(self._view)) <= options.cache_bytes
        batches = []
        for batch in _prefetched(range(self.num_batches), self._batch, options.num_threads, options.prefetch):
            if keep:
                batches.append(batch)
            yield batch
        self._kept = batches

    def _batch(self, index: int) -> HostBatch:
        view, (start, stop) = self._view, self._part
        ids = np.arange(start, stop) + index * self._batch_size
        ids = ids[ids < self.source.num_examples]
        pixels = np.zeros((stop - start, *view_shape(view)), np.uint8)
        label, mask = np.zeros(stop - start, np.int32), np.zeros(stop - start, bool)

        def readable() -> Iterator[tuple[Decoded, int]]:
            for row, (image, label_of_row) in enumerate(self._reader.decoded(ids)):
                label[row] = label_of_row
                if image is not None:
                    yield image, row

        for images, rows in pack_groups(readable()):
            pixels[rows] = central_view(images, np.arange(len(rows)), view.resize, view.image_size, view.fit)
            mask[rows] = True
        batch = {"pixels": pixels, "mask": mask}
        return batch if self.source.num_classes is None else batch | {"label": label}


def _read(split: Split, stream: Stream, step: int, part: tuple[int, int]) -> HostBatch:
    """Reads the examples from `part`'s start to its stop of a step's batch."""
    draws, regime = stream.draws(step).part(*part), split.view.regime
    branches: splits.Branches = {"": draws}
    if regime == "fixed":
        branches["teacher_"] = None
    elif regime == "independent":
        branches["teacher_"] = stream.draws(step, "teacher").part(*part)
    return {"step": np.asarray(step, np.int32), "lam": np.asarray(draws.lam), **split.read(draws.ids, branches)}


def _balance(source: Source, options: SourceConfig) -> Balance | None:
    if options.balance == "none":
        return None
    labels = all_labels(source, options.num_threads)
    if (labels < 0).any():
        name = source.example_name(int(np.argmax(labels < 0)))
        raise DataError(
            f"config.source.balance={options.balance!r} draws images by class, but {name} has no label: give all "
            "training images labels, or set it to 'none'"
        )
    return Balance.of(labels, options.balance)


def _part(batch_size: int, process_index: int, process_count: int) -> tuple[int, int]:
    """Returns the start and stop of a process's examples within a global batch."""
    size, rest = divmod(batch_size, process_count)
    if rest:
        raise ValueError(f"batch_size={batch_size} is not divisible by process_count={process_count}")
    return process_index * size, (process_index + 1) * size


def _prefetched(
    indices: range, make_fn: Callable[[int], HostBatch], num_threads: int, prefetch: int
) -> Iterator[HostBatch]:
    read_options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.range(indices.start, indices.stop).map(make_fn).to_iter_dataset(read_options))

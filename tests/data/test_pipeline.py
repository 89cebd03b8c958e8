import dataclasses
import io
import itertools
import logging
import threading

import numpy as np
import pytest
from PIL import Image

from big_distill.config import Config, SourceConfig, ViewConfig
from big_distill.data import Source, array_source, jpeg, reading, resample
from big_distill.data.pipeline import EvalPipeline, TrainPipeline
from big_distill.data.reading import Reader
from big_distill.data.sources import check_source
from big_distill.data.splits import CachedSplit, StreamedSplit
from big_distill.errors import DataError

NUM = 30
REGIMES = ("consistent", "function_matching", "fixed", "independent")


def mixed_source(bad=(), num_classes=5, num_examples=NUM):
    """Makes PNGs of mixed sizes; the label of example i is i % 5."""
    random = np.random.default_rng(0)
    data = []
    for i in range(num_examples):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (*random.integers(9, 25, 2), 3), np.uint8)).save(file, "PNG")
        data.append(file.getvalue()[: 40 if i in bad else None])
    return Source(
        name="mixed",
        num_examples=num_examples,
        num_classes=num_classes,
        class_names=(),
        fingerprint="",
        read=lambda ids: [(data[i], -1 if num_classes is None else int(i) % 5) for i in ids],
        example_name=lambda i: f"image {i}",
    )


def make_config(
    regime="consistent", crop="inception", flip=True, total_steps=9, reduced_decoding=False, fit="crop", **options
):
    view = ViewConfig(
        image_size=8,
        fit=fit,
        regime=regime,
        crop=crop,
        reduced_decoding=reduced_decoding,
        flip=flip,
        mixup=float(regime == "function_matching"),
        resize=10,
    )
    source = SourceConfig(num_train_examples=NUM, **{"max_bad_fraction": 0.2, **options})
    return Config(num_classes=5, batch_size=8, total_steps=total_steps, view=view, source=source)


def batches(config, source, start_step=0, process_index=0, process_count=1):
    return list(batches_of(TrainPipeline(config, source, process_index, process_count), start_step))


def batches_of(pipeline, start_step=0):
    for chunk in pipeline.chunks(start_step):
        for index in range(len(chunk["step"])):
            yield {key: value[index] for key, value in chunk.items()}


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


def test_keys_and_types():
    (batch, *_) = batches(make_config(), mixed_source())
    assert {key: (value.dtype.name, value.shape) for key, value in batch.items()} == {
        "step": ("int32", ()),
        "lam": ("float32", ()),
        "pixels": ("uint8", (8, 8, 8, 3)),
        "label": ("int32", (8,)),
    }
    assert batch["lam"] == 1
    (batch, *_) = batches(make_config("independent"), mixed_source(num_classes=None))
    assert batch.keys() == {"step", "lam", "pixels", "teacher_pixels"}
    (batch, *_) = batches(make_config("function_matching"), mixed_source())
    assert 0.5 <= batch["lam"] < 1


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
@pytest.mark.parametrize("regime", REGIMES)
def test_processes_share_the_global_batch(regime, cache_bytes):
    config, source = make_config(regime, cache_bytes=cache_bytes), mixed_source(bad={4, 29})
    whole = batches(config, source)
    for count in (2, 4):
        parts = [batches(config, source, 0, index, count) for index in range(count)]
        for step, local in enumerate(zip(*parts, strict=True)):
            assert local[0]["pixels"].shape[0] == 8 // count
            joined = {
                key: np.concatenate([part[key] for part in local]) if local[0][key].ndim else local[0][key]
                for key in local[0]
            }
            assert_same([joined], [whole[step]])


@pytest.mark.parametrize("num_threads", [1, 3])
def test_any_start_is_the_tail_of_the_whole_run(num_threads):
    config = make_config("function_matching", num_threads=num_threads)
    whole = batches(config, mixed_source())
    assert [int(batch["step"]) for batch in whole] == list(range(9))
    for start in (1, 4, 9):
        assert_same(batches(config, mixed_source(), start), whole[start:])


@pytest.mark.parametrize("bad", [(), (0, 4, 5, 29)])
@pytest.mark.parametrize(("regime", "crop"), [*itertools.product(REGIMES, ("inception", "central"))])
def test_in_memory_and_read_batch_by_batch_are_the_same(regime, crop, bad, monkeypatch):
    in_memory = TrainPipeline(make_config(regime, crop), mixed_source(bad))
    expected = list(batches_of(in_memory))
    monkeypatch.setattr(resample, "_GROUP_BYTES", 2000)  # a few images
    streamed = TrainPipeline(make_config(regime, crop, cache_bytes=0), mixed_source(bad))
    assert isinstance(in_memory._split, CachedSplit) and isinstance(streamed._split, StreamedSplit)
    assert_same(list(batches_of(streamed)), expected)
    decoded = in_memory._split.images.pixels.nbytes * NUM // (NUM - len(bad)) + 3
    tight = TrainPipeline(make_config(regime, crop, cache_bytes=decoded), mixed_source(bad))
    assert isinstance(tight._split, CachedSplit) and tight._split.central is None  # no room for the central views
    assert_same(list(batches_of(tight)), expected)


def test_a_split_that_turns_out_too_large_is_not_kept():
    """The size is estimated from 64 sampled images: here every second one, and these are the small ones."""
    images = [np.full((8 if i % 2 == 0 else 2000, 2, 3), i % 256, np.uint8) for i in range(128)]
    source = dataclasses.replace(
        mixed_source(), num_examples=128, read=lambda ids: [(images[i], int(i) % 5) for i in ids]
    )
    pipeline = TrainPipeline(make_config(cache_bytes=100_000, max_bad_fraction=0.0), source)
    assert isinstance(pipeline._split, StreamedSplit)
    assert_same(list(batches_of(pipeline)), batches(make_config(), source))


def test_fixed_teacher_sees_the_evaluation_view_unflipped():
    source, config = mixed_source(), make_config("fixed")
    views = np.concatenate([batch["pixels"] for batch in EvalPipeline(source, config.view, config.source, 10)])
    pipeline = TrainPipeline(config, source)
    for step, batch in enumerate(batches_of(pipeline)):
        np.testing.assert_array_equal(batch["teacher_pixels"], views[pipeline.stream.ids(step)])
        assert not np.array_equal(batch["pixels"], batch["teacher_pixels"])


def test_independent_views_differ_and_consistent_has_one():
    for batch in batches(make_config("independent"), mixed_source()):
        assert (batch["pixels"] != batch["teacher_pixels"]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("crop", ["inception", "central"])
def test_flips_are_those_drawn(crop):
    flipped, plain = (TrainPipeline(make_config(crop=crop, flip=flip), mixed_source()) for flip in (True, False))
    for step, (batch, other) in enumerate(zip(batches_of(flipped), batches_of(plain), strict=True)):
        mirrored = np.where(
            flipped.stream.draws(step).flip[:, None, None, None], other["pixels"][:, :, ::-1], other["pixels"]
        )
        np.testing.assert_array_equal(batch["pixels"], mirrored)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_a_bad_image_is_replaced_by_the_next_with_its_label(cache_bytes, caplog):
    config = make_config(crop="central", flip=False, total_steps=20, cache_bytes=cache_bytes)
    good = mixed_source()
    view = np.concatenate([batch["pixels"] for batch in EvalPipeline(good, config.view, config.source, 10)])
    pipeline = TrainPipeline(config, mixed_source(bad={4, 5, 29}))
    with caplog.at_level(logging.WARNING):
        for step, batch in enumerate(batches_of(pipeline)):
            used = np.array([{4: 6, 5: 6, 29: 0}.get(i, i) for i in pipeline.stream.ids(step)])
            np.testing.assert_array_equal(batch["pixels"], view[used])
            np.testing.assert_array_equal(batch["label"], used % 5)
    assert sorted(pipeline.bad) == ["image 29", "image 4", "image 5"]
    if cache_bytes == 0:
        assert sum("cannot read image 4:" in message for message in caplog.messages) == 1
    assert pipeline.example_names(0) == [f"image {i}" for i in pipeline.stream.ids(0)]


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_too_many_bad_images_stop_the_run(cache_bytes):
    config = make_config(cache_bytes=cache_bytes, max_bad_fraction=0.07, total_steps=20)
    message = r"^4 of 30 images of mixed cannot be read, more than config.source.max_bad_fraction=0.07 allows: "
    with pytest.raises(DataError, match=message) as error:
        batches(config, mixed_source(bad={3, 7, 8, 20}))
    assert str(error.value).count("image ") == 4
    config = make_config(cache_bytes=cache_bytes, max_bad_fraction=1.0, num_threads=4)
    with pytest.raises(DataError, match=r"^none of the 30 images of mixed can be read: .* and 10 more$"):
        batches(config, mixed_source(bad=range(NUM)))


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_one_bad_image_stops_no_run(cache_bytes):
    """Thirty images are too few for 1 % to be one."""
    config = make_config(cache_bytes=cache_bytes, max_bad_fraction=0.01, total_steps=20)
    assert len(batches(config, mixed_source(bad={3}))) == 20
    with pytest.raises(DataError, match=r"^2 of 30 images"):
        batches(config, mixed_source(bad={3, 20}))
    with pytest.raises(DataError, match=r"^1 of 30 images"):
        batches(make_config(cache_bytes=cache_bytes, max_bad_fraction=0.0, total_steps=20), mixed_source(bad={3}))


def photographs(bad=()):
    """Makes smooth JPEGs of 12 to 160 px, every fifth a PNG; the damaged ones have whole headers."""
    random = np.random.default_rng(0)
    data = []
    for i in range(NUM):
        small = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8))
        file = io.BytesIO()
        image = small.resize(tuple(random.integers(12, 161, 2).tolist()), Image.Resampling.BICUBIC)
        image.save(file, "PNG" if i % 5 == 4 else "JPEG", **({} if i % 5 == 4 else {"quality": 95}))
        data.append(file.getvalue()[: -400 if i in bad else None])
    return dataclasses.replace(mixed_source(), read=lambda ids: [(data[i], int(i) % 5) for i in ids])


@pytest.mark.parametrize(
    ("regime", "crop", "fit"),
    [
        *itertools.product(REGIMES, ("inception", "central"), ("crop",)),
        *itertools.product(("independent",), ("inception",), ("squash", "pad")),
    ],
)
def test_parts_of_jpegs_show_what_the_whole_does(regime, crop, fit, parts, monkeypatch):
    monkeypatch.setattr(reading, "_SAMPLE", 1)  # image 0; a batch is the first to read the others
    source = photographs(bad={3, 20, 22})
    expected = batches(make_config(regime, crop, total_steps=12, fit=fit), source)
    config = make_config(regime, crop, total_steps=12, fit=fit, cache_bytes=0, num_threads=1)
    pipeline = TrainPipeline(config, source)
    shown = np.concatenate([pipeline.stream.ids(step) for step in range(12)]).tolist()
    jpegs = [i for i in ({3: 4, 20: 21, 22: 23}.get(i, i) for i in shown) if i % 5 != 4]
    by_parts = crop == "inception" and regime != "fixed"
    for known in ({0}, set(jpegs)):  # a process that has just begun, and one that has read them all
        assert_same(list(batches_of(pipeline)), expected)
        if parts is not None:
            assert len(parts) == (len(jpegs) - len(set(jpegs) - known)) * by_parts
            parts.clear()
    assert len(pipeline.bad) == 3
    assert_same(batches(config, source, 5), expected[5:])


def test_all_of_an_image_is_read_when_it_first_comes(parts):
    """The whole image is decoded first, so that damage is found whichever part is wanted."""
    reader = Reader(photographs(bad={3}), channels=3, max_bad_fraction=0.5)
    ids, part_fn = np.arange(NUM), lambda row, height, width: jpeg.Part(jpeg.Box(1, 2, 5, 6))
    first = [image for image, _ in reader.decoded(ids, part_fn)]
    assert not parts and reader.bad == ("image 3",) and first[3] is None
    again = [image for image, _ in reader.decoded(ids, part_fn)]
    for i, (image, other) in enumerate(zip(first, again, strict=True)):
        assert i == 3 or (image.pixels == other.pixels).all()
        plain = i != 3 and i % 5 != 4
        assert reader.sizes(ids)[i].tolist() == ([image.height, image.width] if plain else [0, 0])
    assert parts is None or len(parts) == NUM - NUM // 5 - 1


def test_a_part_that_is_refused_is_asked_for_once(monkeypatch):
    refused = []
    monkeypatch.setattr(jpeg, "part_decoder", lambda: lambda *args: refused.append(args))
    reader = Reader(photographs(), channels=3, max_bad_fraction=0.5)
    ids, part_fn = np.arange(NUM), lambda row, height, width: jpeg.Part(jpeg.Box(1, 2, 5, 6))
    first, *later = ([image.pixels for image, _ in reader.decoded(ids, part_fn)] for _ in range(4))
    assert len(refused) == NUM - NUM // 5
    for others in later:
        for pixels, other in zip(first, others, strict=True):
            np.testing.assert_array_equal(pixels, other)


@pytest.mark.parametrize(
    ("regime", "crop", "cache_bytes", "wanted"),
    [
        ("consistent", "inception", 0, True),
        ("fixed", "inception", 0, False),
        ("consistent", "central", 0, False),
        ("consistent", "inception", 1 << 30, False),
    ],
)
def test_the_decoder_of_parts_is_ready_before_there_are_threads(regime, crop, cache_bytes, wanted, monkeypatch):
    threads = []
    monkeypatch.setattr(jpeg, "part_decoder", lambda: threads.append(threading.current_thread()))
    pipeline = TrainPipeline(make_config(regime, crop, cache_bytes=cache_bytes), photographs())
    pipeline.chunks(0)
    assert threads[:1] == [threading.main_thread()] * wanted


@pytest.mark.parametrize(
    ("regime", "fit"),
    [*itertools.product(("consistent", "function_matching", "independent"), ("crop",)), ("consistent", "pad")],
)
def test_reduced_decoding_shows_the_same_crops_whatever_memory_there_is(regime, fit, monkeypatch):
    reductions = set()

    def crop_resize(images, ids, boxes, size, flip):
        sizes = zip(images.heights[ids], images.widths[ids], strict=True)
        for reduction, box, size_ in zip(images.reductions[ids], boxes, sizes, strict=True):
            top, left, height, width = jpeg.visible(jpeg.Box(*box), *size_)
            ends = (top + height) // reduction, (left + width) // reduction
            assert reduction == 1 or min(ends[0] + (-top // reduction), ends[1] + (-left // reduction)) >= size
        reductions.update(images.reductions.tolist())
        return resample.crop_resize(images, ids, boxes, size, flip)

    monkeypatch.setattr("big_distill.data.splits.crop_resize", crop_resize)
    source = photographs(bad={3, 4, 20})
    whole = batches(make_config(regime, fit=fit), source)
    reduced = batches(make_config(regime, fit=fit, reduced_decoding=True), source)
    assert reductions == {1, 2, 4, 8}
    for batch, other in zip(whole, reduced, strict=True):
        for key in batch:
            if not key.endswith("pixels"):
                np.testing.assert_array_equal(batch[key], other[key])
                continue
            assert (batch[key] != other[key]).any()
            off = np.abs(batch[key].astype(int) - other[key]).mean((1, 2, 3))
            assert off.max() < 12, off  # a crop of another image is 60 off
    for start, options in ((0, {"cache_bytes": 0}), (4, {"num_threads": 3})):
        config = make_config(regime, fit=fit, reduced_decoding=True, **options)
        assert_same(batches(config, source, start), reduced[start:])
    halves = [batches(make_config(regime, fit=fit, reduced_decoding=True), source, 0, i, 2) for i in range(2)]
    joined = [np.concatenate([a["pixels"], b["pixels"]]) for a, b in zip(*halves, strict=True)]
    np.testing.assert_array_equal(joined, [batch["pixels"] for batch in reduced])


def evaluate(batch_size=8, count=1, source=None, **options):
    config = make_config(**options)
    pipelines = [
        EvalPipeline(source or mixed_source(), config.view, config.source, batch_size, i, count) for i in range(count)
    ]
    assert len({pipeline.num_batches for pipeline in pipelines}) == 1
    return pipelines


@pytest.mark.parametrize("batch_size", [4, 8, 30, 64])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_evaluation_sees_every_example_once(batch_size, count):
    if batch_size % count:
        with pytest.raises(ValueError, match="not divisible"):
            evaluate(batch_size, count)
        return
    source = array_source(
        "numbers", np.arange(NUM, dtype=np.uint8).repeat(64).reshape(NUM, 8, 8), np.arange(NUM) % 5, "abcde"
    )
    pipelines = evaluate(batch_size, count, source)
    parts = [list(pipeline) for pipeline in pipelines]
    assert {len(part) for part in parts} == {pipelines[0].num_batches} == {-(-NUM // batch_size)}
    numbers, labels = [], []
    for local in zip(*parts, strict=True):
        for batch in local:
            assert batch["pixels"].shape == (batch_size // count, 8, 8, 3)
            numbers += batch["pixels"][batch["mask"], 0, 0, 0].tolist()
            labels += batch["label"][batch["mask"]].tolist()
            assert not batch["pixels"][~batch["mask"]].any()
    assert numbers == list(range(NUM))
    assert labels == [number % 5 for number in numbers]


def with_labels(labels):
    """Makes a source of three classes that gives labels as it reads."""
    labels, pixels = np.array(labels), np.zeros((8, 8), np.uint8)
    return Source(
        "own", len(labels), 3, (), "", lambda ids: [(pixels, int(labels[i])) for i in ids], lambda i: f"own {i}"
    )


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_a_label_of_no_class_is_named(cache_bytes):
    message = "own 2 has the label 3, but own has 3 classes: expected 0 to 2, or -1 for an example without a label"
    with pytest.raises(DataError, match=message):
        TrainPipeline(make_config(cache_bytes=cache_bytes), with_labels([0, 1, 3] * 10)).batch(0)
    (pipeline,) = evaluate(source=with_labels([0, 1, 3, 2]))
    with pytest.raises(DataError, match=message):
        list(pipeline)


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_only_an_objective_of_labels_needs_every_label(cache_bytes):
    config, source = make_config(cache_bytes=cache_bytes), with_labels([0, 1, -1] * 10)
    with pytest.raises(
        DataError, match=r"own 2 has no label \(-1\), but config.objective.name='hinton' needs the label"
    ):
        TrainPipeline(config, source, labels_for="hinton").batch(0)
    assert -1 in TrainPipeline(config, source).batch(0)["label"]


def test_evaluation_masks_what_cannot_be_read():
    (pipeline,) = evaluate(source=mixed_source(bad={0, 11}))
    mask = np.concatenate([batch["mask"] for batch in pipeline])
    assert np.flatnonzero(~mask).tolist() == [0, 11, 30, 31]
    assert sorted(pipeline.bad) == ["image 0", "image 11"]
    (pipeline,) = evaluate(source=mixed_source(bad={0, 11}), max_bad_fraction=0.04)
    with pytest.raises(DataError, match="2 of 30 images"):
        list(pipeline)


@pytest.mark.parametrize(("cache_bytes", "passes_read"), [(32 * 8 * 8 * 3, 1), (32 * 8 * 8 * 3 - 1, 3)])
def test_evaluation_keeps_views_that_fit(cache_bytes, passes_read):
    source, read = mixed_source(), []
    counting = dataclasses.replace(source, read=lambda ids: read.extend(ids) or source.read(ids))
    (pipeline,) = evaluate(source=counting, cache_bytes=cache_bytes)
    first = list(pipeline)
    assert_same(list(pipeline), first)
    assert_same(list(pipeline), first)
    assert len(read) == passes_read * NUM


def test_an_evaluation_that_is_given_up_keeps_nothing():
    (pipeline,) = evaluate()
    next(iter(pipeline))
    assert len(list(pipeline)) == pipeline.num_batches == 4


def test_unlabelled_evaluation():
    (pipeline,) = evaluate(source=mixed_source(num_classes=None))
    assert next(iter(pipeline)).keys() == {"pixels", "mask"}


def test_check():
    source, unlabelled = mixed_source(), mixed_source(num_classes=None)
    check_source(source, 30, 5, "hinton")
    check_source(unlabelled, 30, 5, None)
    with pytest.raises(DataError, match=r"^config\.source\.num_train_examples=31, but mixed has 30$"):
        check_source(source, 31, 5, None)
    with pytest.raises(DataError, match=r"^config\.num_classes=7, but mixed has 5$"):
        check_source(source, 30, 7, None)
    with pytest.raises(DataError, match=r"^config\.objective\.name='hinton' needs labels, but mixed has none$"):
        check_source(unlabelled, 30, 5, "hinton")


def uneven_source(labels_known):
    """Makes 30 images, whose label says their class: 24 of class 0, 6 of class 1."""
    images = np.random.default_rng(0).integers(0, 256, (30, 9, 9, 3), np.uint8)
    source = array_source("uneven", images, np.repeat([0, 1], [24, 6]), ["many", "few"])
    return source if labels_known else dataclasses.replace(source, labels=None)


@pytest.mark.parametrize("labels_known", [True, False])
def test_balanced_batches_hold_classes_alike_and_resume_in_all_processes(labels_known):
    config, source = make_config(total_steps=15, balance="full"), uneven_source(labels_known)
    whole = batches(config, source)
    assert np.bincount(np.concatenate([batch["label"] for batch in whole])).tolist() == [60, 60]
    assert_same(whole[7:], batches(config, source, start_step=7))
    first, second = (batches(config, source, 0, index, 2) for index in (0, 1))
    for batch, *parts in zip(whole, first, second, strict=True):
        np.testing.assert_array_equal(batch["pixels"], np.concatenate([part["pixels"] for part in parts]))


def test_balanced_draws_are_the_same_where_the_split_is_on_the_devices():
    config, source = make_config(total_steps=4, balance="sqrt", resident=True), uneven_source(labels_known=True)
    sent = batches(make_config(total_steps=4, balance="sqrt"), source)
    for batch, drawn in zip(sent, batches(config, source), strict=True):
        np.testing.assert_array_equal(source.labels[drawn["id"]], batch["label"])


def test_an_image_without_a_label_is_not_drawn_by_class():
    images = np.zeros((3, 9, 9, 3), np.uint8)
    for labels in ([0, -1, 1], None):
        source = array_source("half", images, labels and np.array(labels), ["a", "b"])
        with pytest.raises(DataError, match=r"^config.source.balance='full' draws .* half #[01] has no label.*'none'$"):
            TrainPipeline(make_config(balance="full"), source)

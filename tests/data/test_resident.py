"""Checks that splits on the devices, and several steps in one program, give the same run."""

import functools
import importlib.util
import itertools
import math
import signal
import weakref

import jax
import numpy as np
import pytest
from processes import timeless
from tiers import cases

from big_distill.config import Config, SourceConfig, ViewConfig
from big_distill.data import Source
from big_distill.data.pipeline import TrainPipeline, abstract_draws
from big_distill.errors import ConfigError, DataError, NonFiniteError, Preempted
from big_distill.parallel import sharding
from big_distill.planning import chips, hlo
from big_distill.resolve import resolve
from big_distill.run_dir import metrics
from big_distill.state import Resident
from big_distill.step import cropping
from big_distill.training.data import open_data
from big_distill.training.loop import train_and_evaluate
from big_distill.training.setup import set_up

REGIMES = ("consistent", "function_matching", "fixed", "independent")


def resolved(config):
    return resolve(config, jax.device_count(), "cpu")


def pipeline_of(regime, crop, side=16, num_classes=5, flip=True, fit="crop", **options):
    """Makes a pipeline of thirty smooth images of mixed sizes, three of them unreadable."""
    random = np.random.default_rng(0)
    images = []
    for index in range(30):
        height, width = random.integers(12, 40, 2)
        waves = np.sin(random.uniform(0.1, 0.9, (3, 1, 1)) * np.add.outer(np.arange(height), 1.7 * np.arange(width)))
        images.append(np.uint8(np.moveaxis(127.5 + 127.5 * waves, 0, -1)) if index not in (4, 5, 29) else b"nothing")
    source = Source(
        name="waves",
        num_examples=30,
        num_classes=num_classes,
        class_names=(),
        fingerprint="",
        read=lambda ids: [(images[i], -1 if num_classes is None else int(i) % 5) for i in ids],
        example_name=str,
    )
    mixup = float(regime == "function_matching")
    view = ViewConfig(image_size=side, regime=regime, crop=crop, mixup=mixup, resize=side + 2, flip=flip, fit=fit)
    options = SourceConfig(num_train_examples=30, max_bad_fraction=0.2, resident=True, **options)
    return TrainPipeline(Config(num_classes=5, batch_size=16, total_steps=9, view=view, source=options), source)


@pytest.fixture(params=cases("cpu", "tpu", full=["gpu", "tpu, large"]))
def form(request, monkeypatch):
    """Makes rows and crops be picked by the form of one platform."""
    platform, _, large = request.param.partition(", ")

    def choose(*args, default, **forms):
        return forms.get(platform, default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose)
    monkeypatch.setattr(cropping, "_LARGE", 0 if large else 1 << 30)


@pytest.mark.parametrize(
    ("regime", "crop", "fit"),
    [
        *itertools.product(REGIMES, ("inception", "central"), ("crop",)),
        *itertools.product(("fixed",), ("inception",), ("squash", "pad")),
    ],
)
def test_the_devices_make_what_the_host_makes(regime, crop, fit, form):
    pipeline = pipeline_of(regime, crop, fit=fit)
    resident, exact = pipeline.resident(), []
    for step in range(9):
        want, got = pipeline.batch(step), cropping.from_resident(resident, pipeline.draw(step), 16)
        assert got.keys() == want.keys()
        for key, value in want.items():
            assert (got[key].dtype, got[key].shape) == (value.dtype, value.shape)
            difference = np.abs(np.asarray(got[key], np.float64) - value)
            assert difference.max() <= (1 if "pixels" in key else 0), key
            exact.append(np.mean(difference == 0))
    assert np.mean(exact) > 0.9999


@pytest.mark.full
@pytest.mark.parametrize("crop", ["inception", "central"])
def test_without_flips_none_are_made(crop):
    pipeline = pipeline_of("independent", crop, flip=False)
    want, got = pipeline.batch(0), cropping.from_resident(pipeline.resident(), pipeline.draw(0), 16)
    for key in ("pixels", "teacher_pixels"):
        assert np.abs(np.asarray(got[key], int) - want[key]).max() <= 1, key


def test_only_draws_travel():
    (chunk, *_) = pipeline_of("independent", "inception").chunks(0)
    bytes_an_image = sum(value.nbytes for value in chunk.values() if value.ndim > 1) / 16
    assert bytes_an_image == 2 * (4 + 4 * 4 + 1)  # id, box, flip of both branches
    assert set(chunk) == {f"{branch}{name}" for branch in ("", "teacher_") for name in ("id", "box", "flip")} | {
        "step", "lam"
    }  # fmt: skip


@pytest.mark.parametrize(("regime", "crop"), [*itertools.product(REGIMES, ("inception", "central"))])
def test_what_travels_is_what_is_planned(regime, crop):
    pipeline = pipeline_of(regime, crop)
    (chunk, *_) = pipeline.chunks(0)
    planned = abstract_draws(pipeline._view, 16)
    assert {name: (x.shape, x.dtype) for name, x in planned.items()} == {
        name: (x.shape, x.dtype) for name, x in chunk.items()
    }


def test_nothing_lives_there_that_no_branch_reads():
    crops = pipeline_of("consistent", "inception", num_classes=None).resident()
    assert crops.central is None and crops.label is None
    centres = pipeline_of("fixed", "central").resident()
    assert centres.pixels is None and centres.central.shape == (30, 16 * 16 * 3)


@pytest.mark.parametrize("crop", ["inception", "central"])
def test_a_split_that_does_not_fit_is_refused(crop):
    with pytest.raises(DataError, match=r"resident=True, but waves takes more than config.source.cache_bytes=1,000"):
        pipeline_of("consistent", crop, cache_bytes=1000).resident()


def test_padding_counts():
    """These images fit, but not if each is padded to the height and width of the largest."""
    pipeline = pipeline_of("consistent", "inception")
    fits = pipeline._split.images.pixels.nbytes + 10_000
    with pytest.raises(
        DataError, match=r"waves, padded to 39 x 36 px each, takes 126,360 bytes, more than config.source.cache_bytes"
    ):
        pipeline_of("consistent", "inception", cache_bytes=fits).resident()


def test_the_host_forgets_what_the_devices_have(tiny, tmp_path):
    tiny.source.resident = True
    config = resolved(tiny)
    run = set_up(config, tmp_path, open_data(config))
    before, pixels = run.train_data.draw(3), weakref.ref(run.train_data._split.images.pixels)
    assert run.place_resident().pixels.shape == (1200, 64) and pixels() is None
    for key, value in run.train_data.draw(3).items():
        np.testing.assert_array_equal(value, before[key])


def test_a_device_that_is_too_small_is_named(tiny, tmp_path, monkeypatch):
    tiny.source.resident = True
    device = type("Device", (), {"memory_stats": lambda self: {"bytes_limit": 20_000, "bytes_in_use": 10_000}})()
    config = resolved(tiny)
    run = set_up(config, tmp_path, open_data(config))
    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda: [device])
        with pytest.raises(DataError, match=r"takes 0.1 MB on every device, which has 0.0 MB left"):
            run.place_resident()


@pytest.mark.parametrize(("start", "boundaries"), [(0, [0, 4, 8]), (3, [3, 4, 8]), (4, [4, 8]), (9, [])])
def test_chunks_depend_on_the_step_alone(start, boundaries):
    pipeline = pipeline_of("consistent", "inception")
    pipeline._steps_per_dispatch = 4
    chunks = list(pipeline.chunks(start))
    assert [int(chunk["step"][0]) for chunk in chunks] == boundaries
    found = [step for chunk in chunks for step in chunk["step"]]
    assert found == list(range(start, 9))


def in_chunks(config, resident=True):
    config = config.copy_and_resolve_references()
    config.steps_per_dispatch, config.source.resident = 3, resident
    return config


def without_rounding(lines):
    return [{key: pytest.approx(value, rel=1e-4, abs=1e-5) for key, value in line.items()} for line in lines]


@pytest.mark.full
@pytest.mark.parametrize("accumulate_steps", [1, 5])
def test_it_is_the_same_run(distilled, train_once, tmp_path, accumulate_steps):
    distilled.total_steps = 8
    distilled.accumulate_steps = accumulate_steps
    whole = train_once(resolved(distilled), tmp_path / "whole")
    for resident in (True, False)[: 2 if accumulate_steps == 1 else 1]:
        run = tmp_path / f"resident={resident}"
        run.mkdir()
        (run / "teacher").symlink_to(tmp_path / "whole" / "teacher")
        chunks = train_and_evaluate(resolved(in_chunks(distilled, resident)), run)
        assert chunks["config_fingerprint"] == whole["config_fingerprint"]
        assert timeless(run) == without_rounding(timeless(tmp_path / "whole"))
        assert [line["step"] for line in timeless(run) if "train/loss" in line] == list(range(1, 9))


@pytest.mark.full
@pytest.mark.parametrize("regime", REGIMES)
def test_it_can_prove_who_saw_what(distilled, tmp_path, regime):
    distilled.view.regime, distilled.log_view_hash = regime, True
    train_and_evaluate(resolved(in_chunks(distilled)), tmp_path)
    lines = [line for line in timeless(tmp_path) if "train/loss" in line]
    seen = [(line["train/view_hash"], line["train/teacher_view_hash"]) for line in lines]
    assert len(seen) == len(set(seen)) == 6
    assert all((ours == theirs) is (regime in ("consistent", "function_matching")) for ours, theirs in seen)


@pytest.mark.full
def test_a_resume_is_bit_exact(tiny, train_once, tmp_path, interrupt_after, capsys):
    tiny.total_steps = 9
    tiny = in_chunks(tiny)
    whole = train_once(resolved(tiny), tmp_path / "whole")
    interrupt_after(2, signal.SIGTERM)  # counts updates of the bar, one a chunk
    with pytest.raises(Preempted, match="saved and stopped at step 6 of 9"):
        train_and_evaluate(resolved(tiny), tmp_path / "parts")
    parts = train_and_evaluate(resolved(tiny), tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"]
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


@pytest.mark.full
def test_a_resume_with_other_chunks_says_that_it_rounds_otherwise(tiny, train_once, tmp_path, interrupt_after, capsys):
    whole = train_once(resolved(tiny), tmp_path / "whole")
    interrupt_after(4)
    with pytest.raises(Preempted, match="step 4 of 6"):
        train_and_evaluate(resolved(tiny), tmp_path / "parts")
    parts = train_and_evaluate(resolved(in_chunks(tiny)), tmp_path / "parts")  # goes on from the middle of a chunk
    said = capsys.readouterr().out
    assert "config.steps_per_dispatch: 1 -> 3" in said and "config.source.resident: False -> True" in said
    assert "not bit-exact" in said
    assert timeless(tmp_path / "parts") == without_rounding(timeless(tmp_path / "whole"))
    assert parts["scores"]["test"]["accuracy"] == pytest.approx(whole["scores"]["test"]["accuracy"], abs=0.01)


@pytest.mark.full
def test_the_rest_of_a_chunk_is_frozen(tiny, tmp_path, monkeypatch):
    honest = TrainPipeline.draw

    def broken(self, step):
        return honest(self, step) | ({"lam": np.float32(np.nan)} if step == 4 else {})

    monkeypatch.setattr(TrainPipeline, "draw", broken)
    tiny.view.mixup = 1.0
    with pytest.raises(NonFiniteError, match="of step 5 is not finite; nothing was updated"):
        train_and_evaluate(resolved(in_chunks(tiny)), tmp_path / "stopped")
    assert [line["step"] for line in timeless(tmp_path / "stopped") if "train/loss" in line] == [1, 2, 3, 4]
    tiny.optimizer.max_skipped_steps = 1
    summary = train_and_evaluate(resolved(in_chunks(tiny)), tmp_path / "skipped")
    assert (summary["steps"], summary["skipped_steps"]) == (6, 1)


def test_examples_stay_on_their_devices(tiny, eight_devices, tmp_path):
    """Each of eight devices crops its own part; only gradients and mixup's one row travel."""
    config = resolved(in_chunks(tiny))
    run = set_up(config, tmp_path, open_data(config))
    chunk = sharding.to_devices(run.mesh, next(run.train_data.chunks(0)), axis=1)
    assert len(chunk["box"].sharding.device_set) == 8 and chunk["box"].sharding.shard_shape((3, 40, 4)) == (3, 5, 4)
    state = run.computation.begin(run.computation.init(jax.random.key(0)))
    text = run.computation.train_chunk.lower((state,), None, run.place_resident(), chunk).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text


@pytest.mark.full
def test_the_bar_and_the_profile_follow_chunks(tiny, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(metrics.Progress, "update", lambda self, step: shown.append(step))
    tiny.profile_at_step, tiny.total_steps = 4, 8
    train_and_evaluate(resolved(in_chunks(tiny)), tmp_path)
    assert shown == [3, 6, 8] and list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps_per_dispatch", 0, "config.steps_per_dispatch=0: expected at least 1"),
        ("steps_per_dispatch", 7, "config.steps_per_dispatch=7 is more than the run's 6 steps"),
        ("eval_every_steps", 4, "config.eval_every_steps=4 is not a multiple of config.steps_per_dispatch=3; 3 is"),
        (
            "checkpoint_every_steps",
            2,
            "checkpoint_every_steps=2 is not a multiple of config.steps_per_dispatch=3; 3 is",
        ),
        (
            "view.reduced_decoding",
            True,
            "reduced_decoding=True with config.source.resident=True: the devices hold whole",
        ),
        (
            "eval_source.resident",
            True,
            "config.eval_source.resident=True is not read: set it for the training split, config.source",
        ),
    ],
)
def test_mistakes(tiny, field, value, message):
    tiny = in_chunks(tiny)
    tiny.update_from_flattened_dict({field: value})
    with pytest.raises(ConfigError, match=message):
        resolved(tiny)


def test_intervals_that_are_not_given_fit(tiny):
    tiny.eval_every_steps, tiny.total_steps = 0, 100
    assert resolved(tiny).eval_every_steps == 10
    config = resolved(in_chunks(tiny))
    assert (config.eval_every_steps, config.checkpoint_every_steps) == (9, 9)


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize(("num_examples", "shape", "size"), [(50_000, (32, 32, 3), 32), (2000, (96, 128, 3), 64)])
def test_a_tpu_reads_the_images_that_it_crops(num_examples, shape, size):
    """A TPU does not read the whole split three times a step: it picks small images at once, large ones one by one."""
    where = chips.open_slice("v5e:2x4")
    mesh = sharding.make_mesh(1, where.devices)

    def placed(shape, dtype, *axes):
        spec = jax.sharding.PartitionSpec(*axes)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.sharding.NamedSharding(mesh, spec))

    bytes_an_image = math.prod(shape)
    split = Resident(pixels=placed((num_examples, bytes_an_image), np.uint8), shape=shape)
    batch = {name: placed((), dtype) for name, dtype in (("step", np.int32), ("lam", np.float32))}
    for name, dtype, of_each in (("id", np.int32, ()), ("box", np.int32, (4,)), ("flip", np.bool_, ())):
        batch[name] = placed((512, *of_each), dtype, mesh.axis_names)
    crop = sharding.on_own_examples(mesh, functools.partial(cropping.from_resident, size=size))
    text = jax.jit(crop).lower(split, batch).compile().as_text()
    read = hlo.Module(text)
    made = 64 * math.prod((size, size, 3))
    assert 64 * bytes_an_image + made <= read.hbm_bytes <= 2 * (64 * bytes_an_image + made) + 1000
    assert not read.collective_bytes and not read.unknown_loops

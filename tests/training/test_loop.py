"""Checks the loop, in this process: what it leaves behind, and that no interruption or error changes the result."""

import dataclasses
import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from processes import timeless
from tiers import cases

import big_distill
from big_distill import weights
from big_distill.config import SourceConfig
from big_distill.data import array_source
from big_distill.data.pipeline import TrainPipeline
from big_distill.data.sources import open_source
from big_distill.errors import ConfigError, DataError, NonFiniteError, Preempted, RunError
from big_distill.main import closing_table
from big_distill.resolve import resolve
from big_distill.run_dir import layout, metrics
from big_distill.run_dir.environment import environment
from big_distill.run_dir.layout import write_config
from big_distill.state import Model
from big_distill.training import data, loop
from big_distill.training.evaluation import add_up_run, evaluate_run
from big_distill.training.loop import train_and_evaluate


def resolved(config):
    return resolve(config, jax.device_count(), "cpu")


def test_distillation_end_to_end(distilled, tmp_path):
    config = resolved(distilled)
    summary = train_and_evaluate(config, tmp_path)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    name = "eval/validation/accuracy"
    best = max((line[name], line["step"]) for line in timeless(tmp_path) if name in line)[1]
    assert summary["steps"] == 6 and summary["resumed_at"] == [] and summary["best_step"] == best
    assert summary["teacher"]["num_params"] > summary["student"]["num_params"] > 0
    for rate in (summary["student"]["accuracy"], summary["teacher"]["accuracy"], summary["agreement"]):
        assert 0 <= rate <= 1
    assert summary["scores"]["test"]["num_examples"] == 200
    assert summary["params_sha256"] == weights.sha256(weights.load(tmp_path).variables["params"])
    teacher = json.loads((tmp_path / "teacher" / "summary.json").read_text())
    assert teacher["teacher"] is None and teacher["student"]["accuracy"] == summary["teacher"]["accuracy"]

    steps = [line["step"] for line in timeless(tmp_path) if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert any(name.startswith("events.out.tfevents") for name in os.listdir(tmp_path))
    assert train_and_evaluate(config, tmp_path) == summary  # finished: the run is only read

    # This evaluates the same student by itself, from a file and by hand.
    scores = summary["scores"]["test"]
    for step in ("final", "latest"):
        assert evaluate_run(tmp_path, "validation", step) == pytest.approx(scores, rel=1e-6)
    with pytest.raises(RunError, match="no checkpoint '4'; there are: 3, 6, latest, best"):
        evaluate_run(tmp_path, "validation", "4")
    with pytest.raises(
        ConfigError, match="--data_dir=/new is a root of TFDS sets, but the run is evaluated on its digits"
    ):
        evaluate_run(tmp_path, "validation", source={"data_dir": "/new"})
    source = open_source(config.source, "validation", num_classes=10, image_size=8, channels=1)
    images, labels = zip(*source.read(np.arange(200)), strict=True)
    predictor = big_distill.load(tmp_path)
    accuracy = (predictor.predict(images).argmax(-1) == np.array(labels)).mean()
    assert accuracy == pytest.approx(scores["accuracy"])
    assert predictor.class_names == tuple("0123456789")

    # Other data than the run's: a folder with the first images of that split, under names of their own.
    for index in range(50):
        path = tmp_path / "photos" / str(labels[index]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(path)
    other = {"name": "folder", "path": str(tmp_path / "photos")}
    name, totals = add_up_run(tmp_path, "all", source=other)
    right = (predictor.predict(images[:50]).argmax(-1) == np.array(labels[:50])).sum()
    assert name == f"{tmp_path / 'photos'} all" and totals["count"] == 50 and totals["accuracy"] == right
    (tmp_path / "photos" / "9").rename(tmp_path / "photos" / "nine")
    with pytest.raises(DataError, match=r"class 9 is 'nine', the network's '9'"):
        evaluate_run(tmp_path, "all", source=other)
    (tmp_path / "photos" / "nine").rename(tmp_path / "photos" / "9")
    photos = SourceConfig(name="folder", path=str(tmp_path / "photos"), group=r"(\d)/", test="test[:3]")
    write_config(tmp_path, dataclasses.replace(config, eval_source=photos))
    assert add_up_run(tmp_path, "all", source=other)[1]["count"] == 50  # it is not cut, and has no group
    (tmp_path / "photos").rename(tmp_path / "moved")
    name, _ = add_up_run(tmp_path, "train", source={"path": str(tmp_path / "moved")})
    assert name == f"{tmp_path / 'moved'} train"
    write_config(tmp_path, config)
    with pytest.raises(
        ConfigError, match=r"config.source.path=x, but the run is evaluated on its digits, which has no"
    ):
        evaluate_run(tmp_path, "all", source={"path": "x"})


@pytest.mark.parametrize(("step", "number"), cases((3, signal.SIGTERM), full=[(4, signal.SIGTERM), (4, signal.SIGINT)]))
def test_resume_is_bit_exact(distilled, train_once, tmp_path, interrupt_after, step, number):
    """At step 3 an evaluation is due; the signal leaves no time for it, and the resumed run does it."""
    config = resolved(distilled)
    whole = train_once(config, tmp_path / "whole")
    train_and_evaluate(config.teacher.config, tmp_path / "parts" / "teacher")
    interrupt_after(step, number)
    with pytest.raises(Preempted, match=f"step {step} of 6"):
        train_and_evaluate(config, tmp_path / "parts")
    evaluated = [line["step"] for line in timeless(tmp_path / "parts") if "eval/test/nll" in line]
    assert evaluated == ([3] if step > 3 else [])
    parts = train_and_evaluate(config, tmp_path / "parts")
    assert parts["resumed_at"] == [step]
    assert parts["params_sha256"] == whole["params_sha256"]
    assert parts["scores"] == whole["scores"]
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


@pytest.mark.full
def test_resume_is_bit_exact_on_eight_devices(distilled, eight_devices, tmp_path, interrupt_after):
    config = resolved(distilled)
    whole = train_and_evaluate(config, tmp_path / "whole")
    interrupt_after(6 + 4)  # the teacher makes the first six steps
    with pytest.raises(Preempted, match="step 4 of 6"):
        train_and_evaluate(config, tmp_path / "parts")
    parts = train_and_evaluate(config, tmp_path / "parts")
    assert parts["resumed_at"] == [4] and parts["params_sha256"] == whole["params_sha256"]
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


@pytest.mark.full
def test_metrics_after_the_checkpoint_are_cut_back(tiny, train_once, tmp_path, monkeypatch):
    """A run that dies between two checkpoints has written metrics of steps that the resumed run writes again."""
    config = resolved(tiny)
    whole = train_once(config, tmp_path / "whole")

    def die(self, step):
        if step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(metrics.Progress, "update", die)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "parts")
    assert [line["step"] for line in timeless(tmp_path / "parts") if "train/loss" in line] == [1, 2, 3, 4]
    parts = train_and_evaluate(config, tmp_path / "parts")
    assert parts["resumed_at"] == [3]
    assert parts["params_sha256"] == whole["params_sha256"]
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


@pytest.mark.full
def test_one_and_eight_devices_train_alike(distilled, tmp_path, request):
    distilled.total_steps = 20
    config = resolved(distilled)
    one = train_and_evaluate(config, tmp_path / "one")
    request.getfixturevalue("eight_devices")
    eight = train_and_evaluate(config, tmp_path / "eight")
    losses = [[line["train/loss"] for line in timeless(tmp_path / d) if "train/loss" in line] for d in ("one", "eight")]
    assert len(losses[0]) == 20
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert one["student"]["accuracy"] == pytest.approx(eight["student"]["accuracy"], abs=0.01)


def test_another_config_is_refused_by_name(tiny, tmp_path):
    train_and_evaluate(resolved(tiny), tmp_path)
    tiny.optimizer.lr = 0.5
    with pytest.raises(RunError, match=r"config.optimizer.lr: 0.001 -> 0.5"):
        train_and_evaluate(resolved(tiny), tmp_path)
    tiny.optimizer.lr = 0.001
    with pytest.raises(RunError, match=r"config.num_classes: 10 -> 11"):
        tiny.num_classes = 11
        train_and_evaluate(resolved(tiny), tmp_path)
    tiny.num_classes = 10
    tiny.log_every_steps = 2
    train_and_evaluate(resolved(tiny), tmp_path)


def test_other_data_are_refused(tiny, tmp_path, interrupt_after):
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("L", (8, 8), 10 * index).save(tmp_path / "images" / name / f"{index}.png")
    tiny.source.name, tiny.source.path, tiny.source.num_train_examples = "folder", str(tmp_path / "images"), 20
    tiny.source.validation, tiny.source.test, tiny.num_classes = None, "train", 2
    interrupt_after(4)
    with pytest.raises(Preempted):
        train_and_evaluate(resolved(tiny), tmp_path / "run")
    (tmp_path / "images" / "a" / "0.png").rename(tmp_path / "images" / "a" / "zero.png")
    with pytest.raises(RunError, match=r"another data \(\S+ train, 20 examples, hash \w{12}; now \S+ train"):
        train_and_evaluate(resolved(tiny), tmp_path / "run")


@pytest.mark.full
def test_other_teachers_are_refused(distilled, tmp_path, interrupt_after):
    config = resolved(distilled)
    interrupt_after(4)
    with pytest.raises(Preempted):
        train_and_evaluate(config.teacher.config, tmp_path / "teacher")
    train_and_evaluate(config.teacher.config, tmp_path / "teacher")
    interrupt_after(4)
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path)
    network = weights.load(tmp_path / "teacher")
    changed = jax.tree.map(lambda x: x + 1, network.variables)
    weights.save(tmp_path / "teacher" / "student.npz", weights.Network(network.architecture, changed))
    with pytest.raises(RunError, match=r"another teacher \(\S+/teacher, hash \w{12}; now \S+/teacher, hash \w{12}\)"):
        train_and_evaluate(config, tmp_path)


@pytest.mark.full
def test_warm_start(tiny, train_once, tmp_path):
    first = train_once(resolved(tiny), tmp_path / "first")
    tiny.init_from = str(tmp_path / "first")
    tiny.optimizer.lr = 0.0
    second = train_and_evaluate(resolved(tiny), tmp_path / "second")
    assert second["params_sha256"] == first["params_sha256"]
    tiny.student.features = (4, 9)
    with pytest.raises(RunError, match=r"does not fit this student: its features is \(4, 8\), config.student.features"):
        train_and_evaluate(resolved(tiny), tmp_path / "third")


@pytest.mark.full
def test_several_teachers_by_path(tiny, tmp_path):
    for seed in (0, 1):
        tiny.seed = seed
        train_and_evaluate(resolved(tiny), tmp_path / str(seed))
    tiny.teacher.path = f"{tmp_path}/0, {tmp_path}/1/student.npz"
    tiny.objective.name = "logit_regression"
    summary = train_and_evaluate(resolved(tiny), tmp_path / "student")
    assert summary["teacher"]["num_params"] == 2 * summary["student"]["num_params"]
    tiny.num_classes, tiny.source.name, tiny.source.num_train_examples = 11, "random", 64
    with pytest.raises(ConfigError, match=r"has 10 classes, config.num_classes=11"):
        train_and_evaluate(resolved(tiny), tmp_path / "other")
    tiny.teacher.path = str(tmp_path / "nothing")
    with pytest.raises(RunError, match="nothing does not exist; expected a path, a URL or a name such as"):
        train_and_evaluate(resolved(tiny), tmp_path / "other")


def explodes(config):
    """Makes a cross-entropy that stops being finite when it falls below the temperature."""

    def loss(student_logits, teacher_logits, targets):
        loss = optax.softmax_cross_entropy(student_logits, targets)
        return loss / (jnp.mean(loss) > config.temperature)

    return loss


def test_non_finite_loss_stops_before_the_update(tiny, tmp_path):
    """The report names the first such step and its examples, also if the loop notices steps later."""
    tiny.log_every_steps = tiny.eval_every_steps = tiny.total_steps = 40
    tiny.optimizer.lr = 0.01
    tiny.objective.name = f"{__name__}:explodes"
    tiny.objective.temperature = 2.0
    config = resolved(tiny)
    with pytest.raises(NonFiniteError, match="is not finite; nothing was updated") as error:
        train_and_evaluate(config, tmp_path)
    (path,) = tmp_path.glob("nonfinite_step_*.json")
    report = json.loads(path.read_text())
    step = report["step"]
    assert 3 < step < 40 and f"step {step} is not finite" in str(error.value)
    source = open_source(config.source, "train", num_classes=10, image_size=8, channels=1)
    assert report["examples"] == TrainPipeline(config, source).example_names(step - 1)
    assert report["examples"][0] in str(error.value)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_mistake_shows_before_the_teacher_is_trained(distilled, tmp_path):
    distilled.optimizer.weight_decay, distilled.optimizer.decay_mask = 0.1, "nothing"
    with pytest.raises(ConfigError, match="decay_mask='nothing' matches no parameter"):
        train_and_evaluate(resolved(distilled), tmp_path)
    distilled.optimizer.weight_decay, distilled.source.test = 0.0, "tst"
    with pytest.raises(DataError, match="tst"):
        train_and_evaluate(resolved(distilled), tmp_path)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.full
def test_a_signal_during_the_teachers_last_step_leaves_its_evaluation_to_a_resume(
    distilled, train_once, tmp_path, interrupt_after
):
    config = resolved(distilled)
    whole = train_once(config, tmp_path / "whole")
    interrupt_after(6)
    with pytest.raises(Preempted, match="saved and stopped at step 6 of 6"):
        train_and_evaluate(config, tmp_path / "parts")
    assert not (tmp_path / "parts" / "teacher" / "summary.json").exists()
    assert train_and_evaluate(config, tmp_path / "parts")["params_sha256"] == whole["params_sha256"]
    assert timeless(tmp_path / "parts" / "teacher") == timeless(tmp_path / "whole" / "teacher")


def test_checkpoints_are_read_on_another_number_of_devices(tiny, tmp_path, request):
    tiny.keep_latest = 1
    train_and_evaluate(resolved(tiny), tmp_path)  # on one device
    under_way = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp-1"
    under_way.mkdir()
    one = evaluate_run(tmp_path, "validation", "latest")
    request.getfixturevalue("eight_devices")
    assert evaluate_run(tmp_path, "validation", "latest") == pytest.approx(one, rel=1e-4)
    assert under_way.exists()  # it may belong to a run that is alive


@pytest.mark.full
def test_unlabelled_folder(distilled, train_once, tmp_path):
    """Function matching needs images, not labels."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(24):
        pixels = rng.integers(0, 256, (9 + index % 3, 10), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "7.png").write_bytes(b"no image")
    train_once(resolved(distilled.teacher.config), tmp_path / "teacher")
    distilled.teacher.config = None
    distilled.teacher.path = str(tmp_path / "teacher")
    distilled.source.name, distilled.source.path = "folder", str(tmp_path / "images")
    distilled.source.train, distilled.source.validation, distilled.source.test = "train[:16]", None, "train[16:]"
    distilled.source.num_train_examples = 16
    distilled.source.max_bad_fraction = 0.2
    summary = train_and_evaluate(resolved(distilled), tmp_path / "run")
    assert summary["student"]["accuracy"] is None and summary["agreement"] is not None
    assert summary["bad_images"] == 1
    distilled.objective.name = "hinton"
    with pytest.raises(DataError, match="needs labels"):
        train_and_evaluate(resolved(distilled), tmp_path / "hinton")


@pytest.mark.full
def test_a_config_of_before_a_field_existed(distilled, tmp_path, capsys):
    distilled.total_steps = 2
    distilled.teacher.config.total_steps = 1
    train_and_evaluate(resolved(distilled), tmp_path)
    wanted = evaluate_run(tmp_path, "validation")
    file = tmp_path / "config.json"
    kept = json.loads(file.read_text())
    for config in (kept["config"], kept["config"]["teacher"]["config"]):
        assert config["teacher"].pop("dtype") == "float32"
    file.write_text(json.dumps(kept))
    capsys.readouterr()

    assert evaluate_run(tmp_path, "validation") == wanted
    train_and_evaluate(resolved(distilled), tmp_path)
    assert "other numerics" not in capsys.readouterr().out
    kept["config"]["dtype"] = "auto"
    file.write_text(json.dumps(kept))
    with pytest.raises(RunError, match=r"config.json cannot be read: config.dtype='auto': expected float32 or"):
        evaluate_run(tmp_path, "validation")


@pytest.mark.full
def test_numerics_may_change_cosmetics_too(tiny, tmp_path, interrupt_after, capsys):
    config = resolved(tiny)
    interrupt_after(4)
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path)
    other = dataclasses.replace(config, dtype="bfloat16", eval_every_steps=2)
    assert train_and_evaluate(other, tmp_path)["resumed_at"] == [4]
    assert "not bit-exactly (config.dtype: 'float32' -> 'bfloat16')" in capsys.readouterr().out


@pytest.mark.full
def test_what_computed_a_run_is_kept(tiny, tmp_path, interrupt_after, monkeypatch):
    """Each machine is kept with the step after which it began; one whose steps are computed again is removed."""
    config = resolved(tiny)
    interrupt_after(4)
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path)
    here = environment()
    assert layout.sessions(tmp_path) == [{"step": 0, **here}]
    assert here["versions"]["jax"] == jax.__version__ and here["num_devices"] == 8 and here["platform"] == "cpu"
    layout.note_session(tmp_path, 4, here)
    assert len(layout.sessions(tmp_path)) == 1, "the same machine went on"
    for step in (4, 5):
        layout.note_session(tmp_path, step, {**here, "cpu": f"another, from {step}"})
    monkeypatch.setattr(loop, "environment", lambda: {**here, "cpu": "a third"})
    train_and_evaluate(config, tmp_path)
    assert [(session["step"], session["cpu"]) for session in layout.sessions(tmp_path)] == [
        (0, here["cpu"]),
        (4, "a third"),
    ]


IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)


def unlabelled(config, split):
    """Makes forty images without labels."""
    del config
    return array_source(split, IMAGES)


def labels_left_out(config, split):
    """Makes forty images whose labels are all -1, as some sets have them in their test split."""
    del config
    return array_source(split, IMAGES, np.full(40, -1), [str(digit) for digit in range(10)])


@pytest.mark.full
@pytest.mark.parametrize("name", ["unlabelled", "labels_left_out"])
def test_without_labels_no_checkpoint_is_the_best(distilled, train_once, tmp_path, name):
    """Such runs are evaluated by agreement, and saved as any other."""
    train_once(resolved(distilled.teacher.config), tmp_path / "teacher")
    distilled.teacher.path = str(tmp_path / "teacher")
    distilled.source.name, distilled.source.num_train_examples = f"{__name__}:{name}", 40
    summary = train_and_evaluate(resolved(distilled), tmp_path / "run")
    assert summary["steps"] == 6 and summary["best_step"] is None and summary["student"]["accuracy"] is None
    assert summary["agreement"] is not None and re.search(r"student +- ", closing_table(summary, tmp_path))


@pytest.mark.full
def test_the_best_checkpoint_by_another_metric(tiny, tmp_path):
    tiny.total_steps, tiny.eval_every_steps, tiny.select_by = 12, 2, "macro_f1"
    summary = train_and_evaluate(resolved(tiny), tmp_path)
    lines = [line for line in timeless(tmp_path) if "eval/validation/accuracy" in line]
    assert summary["best_step"] == max((line["eval/validation/macro_f1"], line["step"]) for line in lines)[1]
    assert summary["scores"]["validation"]["balanced_accuracy"] > 0
    best = evaluate_run(tmp_path, "validation", "best")
    assert best["macro_f1"] == pytest.approx(max(line["eval/validation/macro_f1"] for line in lines))


def test_a_metric_of_labels_needs_them(distilled, tmp_path):
    distilled.teacher.path = str(tmp_path / "teacher")
    distilled.source.name, distilled.source.num_train_examples = f"{__name__}:unlabelled", 40
    distilled.select_by = "balanced_accuracy"
    with pytest.raises(ConfigError, match="select_by='balanced_accuracy' needs labels, but validation has none"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")


def two_logits(config, num_classes, dtype):
    """Makes a network for two classes, whatever number is asked for."""
    del config, num_classes, dtype

    def apply(variables, image, *, train, rng=None):
        return image.mean((1, 2))[:, :1] * variables["params"]["kernel"], {}

    return Model(lambda rng, image: {"params": {"kernel": jnp.ones((1, 2))}}, apply)


def test_an_own_network_has_a_logit_a_class(tiny, tmp_path):
    tiny.student.name, tiny.student.features = f"{__name__}:two_logits", ()
    with pytest.raises(ConfigError, match=r"two_logits' returned logits \(1, 2\) for one image, expected \(1, 10\)"):
        train_and_evaluate(resolved(tiny), tmp_path / "run")


def test_sizes_that_do_not_fit_are_said(distilled, capsys):
    distilled.teacher.config.view.image_size = 8
    data.open_data(resolve(distilled, 1, "cpu"))
    assert capsys.readouterr().out == ""
    distilled.view.image_size = 32
    data.open_data(resolve(distilled, 1, "cpu"))
    enlarged, teacher = capsys.readouterr().out.splitlines()
    assert re.match(r"config.view.image_size=32 is larger than the images of digits train, whose .* is 8 px", enlarged)
    assert "the teacher is trained at 8 px" in teacher and "--config.teacher.config.view.image_size=32" in teacher

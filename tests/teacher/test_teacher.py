"""Checks teachers: their cards, their check before training, and data that do not have their labels."""

import dataclasses
import json
import sys
import types

import interruption
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiers import cases

import big_distill
from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import ModelConfig
from big_distill.config.template import template
from big_distill.data import array_source
from big_distill.data.pipeline import TrainPipeline
from big_distill.data.sources import open_source
from big_distill.errors import ConfigError, DataError, Preempted, RunError
from big_distill.parallel import sharding
from big_distill.resolve import resolve
from big_distill.run_dir.metrics import read_metrics
from big_distill.state import Card
from big_distill.step.steps import teacher_logits
from big_distill.teacher import activation_ranges, check, frozen
from big_distill.training import loop
from big_distill.training.evaluation import evaluate_run
from big_distill.training.loop import train_and_evaluate

CLASSES = tuple("0123456789")


def resolved(config, platform="cpu"):
    return resolve(config, jax.device_count(), platform)


def save_bit(path, image_size=8, num_classes=10, seed=0):
    """Saves a small BiT with random weights whose logits vary."""
    architecture = weights.ConfigArchitecture(
        ModelConfig("bit", blocks=(1,), width=0.125), num_classes, 1, image_size, Card(image_size, class_names=CLASSES)
    )
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), architecture.abstract_variables())
    weights.save(path, weights.Network(architecture, variables))
    return path


@pytest.fixture
def distilled(tiny, tmp_path):
    tiny.objective.name = "function_matching"
    tiny.teacher.path = str(save_bit(tmp_path / "bit.npz"))
    return tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a teacher that knows the digits well enough for a wrong card to show."""
    config = template()
    config.num_classes, config.batch_size, config.total_steps = 10, 40, 100
    config.eval_every_steps = 100
    config.student.name, config.student.features = "cnn", (8, 16)
    config.objective.name = "cross_entropy"
    config.source.name, config.source.num_train_examples, config.source.test = "digits", 1200, "validation"
    config.view.image_size, config.view.channels, config.view.crop, config.view.flip = 8, 1, "central", False
    config.optimizer.lr = 1e-2
    workdir = tmp_path_factory.mktemp("trained")
    summary = train_and_evaluate(resolved(config), workdir)
    assert summary["student"]["accuracy"] > 0.6
    return workdir


@pytest.mark.full
def test_preflight_measures_the_teacher_and_keeps_what_it_found(distilled, trained, tmp_path, capsys):
    distilled.teacher.path = str(trained)
    distilled.teacher.min_accuracy = 0.6
    summary = train_and_evaluate(resolved(distilled), tmp_path / "run")
    (found,) = json.loads((tmp_path / "run" / "preflight.json").read_text())["teachers"]
    assert found["accuracy"] == pytest.approx(summary["teacher"]["accuracy"])
    assert found["fold_kl"] == 0 and found["fold_agreement"] == 1, "a CNN has nothing to fold"
    network = weights.load(trained)
    assert (found["path"], found["sha256"]) == (str(trained), weights.sha256(network.variables))
    assert found["num_params"] == summary["teacher"]["num_params"]
    assert found["card"]["class_names"] == list(CLASSES) and found["model"]["features"] == [8, 16]
    said = capsys.readouterr().out
    assert "the teacher before training: accuracy" in said
    assert f"the teacher, {trained}: cnn, {found['num_params']:,} parameters, all loaded (sha256" in said
    assert "sees 8 px, (x - (0.5)) / (0.5)" in said


@pytest.mark.parametrize(("fit", "said"), [("crop", False), ("pad", True)])
def test_a_teacher_that_saw_images_otherwise_is_said(distilled, tmp_path, monkeypatch, capsys, fit, said):
    def stop(*args):
        raise RunError("enough")

    monkeypatch.setattr(frozen, "freeze", stop)
    distilled.view.fit = fit
    with pytest.raises(RunError, match="enough"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")
    line = f"bit.npz was trained with view.fit=crop, or does not say; this run has config.view.fit={fit}"
    assert (line in capsys.readouterr().out) is said


@pytest.mark.full
@pytest.mark.parametrize(("field", "value"), [("input_mean", (5.0,)), ("input_std", (50.0,))])
def test_a_wrong_card_is_noticed_before_a_step_is_spent(distilled, trained, tmp_path, field, value):
    distilled.teacher.path = str(trained)
    distilled.teacher.min_accuracy = 0.6
    distilled.teacher[field] = value
    with pytest.raises(RunError, match=r"below config.teacher.min_accuracy=0.6: is its card right \(input_mean"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")
    assert not read_metrics(tmp_path / "run")


@pytest.mark.full
def test_a_fold_that_costs_too_much_is_refused(distilled, tmp_path):
    distilled.teacher.dtype = "bfloat16"
    distilled.teacher.max_fold_kl = 1e-9
    with pytest.raises(
        RunError, match=r"freezing changes the teacher by a KL of .* above config.teacher.max_fold_kl=1e-09"
    ):
        train_and_evaluate(resolved(distilled), tmp_path / "run")
    distilled.teacher.max_fold_kl = 0.5
    train_and_evaluate(resolved(distilled), tmp_path / "run")
    (found,) = json.loads((tmp_path / "run" / "preflight.json").read_text())["teachers"]
    assert 1e-9 < found["fold_kl"] < 0.5


def test_an_int8_teacher_is_calibrated_once_and_gated(distilled, tmp_path):
    distilled.teacher.dtype = "int8"
    distilled.teacher.max_fold_kl = 1e-9
    with pytest.raises(RunError, match=r"freezing changes the teacher by a KL of"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")
    distilled.teacher.max_fold_kl = 0.5
    whole = train_and_evaluate(resolved(distilled), tmp_path / "run")
    (found,) = json.loads((tmp_path / "run" / "preflight.json").read_text())["teachers"]
    assert 1e-6 < found["fold_kl"] < 0.5
    (ranges,) = json.loads((tmp_path / "run" / "calibration.json").read_text())["ranges"]
    assert sorted(ranges) == [f"block1/unit01/{conv}" for conv in ("conv1", "conv2", "conv3", "conv_proj")]
    assert min(ranges.values()) > 0

    scores = evaluate_run(tmp_path / "run", "validation")
    assert scores["kl"] == pytest.approx(whole["kl"], rel=1e-5)
    assert scores["teacher_accuracy"] == whole["teacher"]["accuracy"]
    (tmp_path / "run" / "calibration.json").unlink()
    with pytest.raises(RunError, match=r"has no calibration.json of this teacher"):
        evaluate_run(tmp_path / "run", "validation")
    save_bit(tmp_path / "bit.npz", seed=1)
    with pytest.raises(RunError, match=r"was trained with another teacher \("):
        evaluate_run(tmp_path / "run", "validation")


@pytest.mark.full
def test_ranges_of_the_first_session_hold_for_the_next(distilled, tmp_path, monkeypatch):
    distilled.teacher.dtype, distilled.teacher.max_fold_kl = "int8", 0.5
    whole = train_and_evaluate(resolved(distilled), tmp_path / "whole")
    stop_after(monkeypatch, distilled, tmp_path / "run", step=3)
    monkeypatch.setattr(activation_ranges, "measure", None)
    resumed = train_and_evaluate(resolved(distilled), tmp_path / "run")
    assert resumed["resumed_at"] == [3] and resumed["params_sha256"] == whole["params_sha256"]


def stop_after(monkeypatch, config, workdir, step):
    """Trains a run for `step` steps and stops it with a SIGTERM."""
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        interruption.interrupt_after(patch, step)
        train_and_evaluate(resolved(config), workdir)


def test_a_teacher_without_convolutions_for_int8_is_refused(distilled, trained, tmp_path):
    distilled.teacher.path, distilled.teacher.dtype = str(trained), "int8"
    with pytest.raises(ConfigError, match=r"config.teacher.dtype='int8': cnn has no convolution for it"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")


@pytest.mark.full
def test_int8_without_a_teacher_is_nothing(tiny, tmp_path):
    tiny.teacher.dtype = "int8"
    train_and_evaluate(resolved(tiny), tmp_path / "run")
    assert evaluate_run(tmp_path / "run", "validation")["num_examples"] == 200
    tiny.objective.name = "function_matching"
    tiny.teacher.config = tiny.copy_and_resolve_references()
    tiny.teacher.config.objective.name = "cross_entropy"
    with pytest.raises(
        ConfigError, match=r"config.teacher.dtype='int8': cnn has no convolution for it; those of bit, e"
    ):
        resolved(tiny)


@pytest.mark.full
def test_int8_that_breaks_the_teacher_does_not_reach_min_accuracy(distilled, trained, tmp_path, monkeypatch):
    """The check is of the frozen network, which is the one that teaches the student."""
    distilled.teacher.path, distilled.teacher.min_accuracy = str(trained), 0.6
    distilled.teacher.max_fold_kl = 100.0
    honest = frozen._stored
    broken = lambda *args: jax.tree.map(lambda x: x[..., ::-1], honest(*args))  # noqa: E731
    monkeypatch.setattr(frozen, "_stored", broken)
    with pytest.raises(RunError, match=r"reaches .* of the evaluation split \(.* before freezing\), below"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")


@pytest.mark.full
@pytest.mark.parametrize("field, value", cases(("min_accuracy", 0.99), full=[("max_fold_kl", 1e-12)]))
def test_a_stricter_gate_holds_for_a_resumed_run(distilled, tmp_path, monkeypatch, field, value):
    distilled.teacher.dtype, distilled.teacher.max_fold_kl = "bfloat16", 0.5
    stop_after(monkeypatch, distilled, tmp_path / "run", step=3)
    distilled.teacher[field] = value
    monkeypatch.setattr(check, "measure", None)
    with pytest.raises(RunError, match=field):
        train_and_evaluate(resolved(distilled), tmp_path / "run")


@pytest.mark.full
def test_teachers_of_unlabelled_data_agree_on_an_order(distilled, tmp_path):
    """The order is that of the first teacher; the student takes its names, too."""
    network = weights.load(tmp_path / "bit.npz")
    order = np.roll(np.arange(10), 3)
    params = dict(network.variables["params"])
    params["head"] = {name: leaf[..., order] for name, leaf in params["head"].items()}
    card = dataclasses.replace(network.architecture.card, class_names=tuple(np.array(CLASSES)[order]))
    other = weights.Network(dataclasses.replace(network.architecture, card=card), {"params": params})
    weights.save(tmp_path / "other.npz", other)
    (tmp_path / "images").mkdir()
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 9), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    source = distilled.source
    source.name, source.path, source.num_train_examples = "folder", str(tmp_path / "images"), 40
    source.validation = source.test = None
    alone = train_and_evaluate(resolved(distilled), tmp_path / "alone")
    distilled.teacher.path = f"{tmp_path}/bit.npz,{tmp_path}/other.npz"
    both = train_and_evaluate(resolved(distilled), tmp_path / "both")
    assert both["params_sha256"] == alone["params_sha256"], "the mean of a network with itself"
    assert weights.load(tmp_path / "both").architecture.card.class_names == CLASSES


@pytest.mark.full
def test_a_refused_command_leaves_the_run_as_it_was(distilled, tmp_path):
    train_and_evaluate(resolved(distilled), tmp_path / "run")
    kept = (tmp_path / "run" / "config.json").read_text()
    distilled.teacher.dtype = "int8"
    train_and_evaluate(resolved(distilled), tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == kept
    assert evaluate_run(tmp_path / "run", "validation")["num_examples"] == 200


@pytest.mark.full
def test_classes_of_what_a_run_starts_from(tiny, trained, tmp_path):
    network = weights.load(trained)
    card = dataclasses.replace(network.architecture.card, class_names=tuple("abcdefghij"))
    other = dataclasses.replace(network, architecture=dataclasses.replace(network.architecture, card=card))
    weights.save(tmp_path / "letters.npz", other)
    tiny.student.features, tiny.init_from = (8, 16), str(tmp_path / "letters.npz")
    with pytest.raises(
        RunError, match=r"letters.npz has other classes, or in another order \('a' where the data have '0'"
    ):
        train_and_evaluate(resolved(tiny), tmp_path / "run")
    tiny.init_fresh = "head/.*"
    train_and_evaluate(resolved(tiny), tmp_path / "run")


@pytest.mark.full
def test_a_card_that_changed_is_another_teacher(distilled, tmp_path, monkeypatch):
    network = weights.load(tmp_path / "bit.npz")
    names = {"/".join(str(key.key) for key in path): x for path, x in jax.tree.leaves_with_path(network.variables)}
    np.savez(tmp_path / "theirs.npz", **{name.removeprefix("params/"): x for name, x in names.items()})
    card = tmp_path / "theirs.card.json"
    card.write_text('{"mean": [0.4], "image_size": 8}')
    distilled.teacher.path = str(tmp_path / "theirs.npz")
    stop_after(monkeypatch, distilled, tmp_path / "run", step=3)
    card.write_text('{"mean": [4.0], "image_size": 8}')
    with pytest.raises(RunError, match=r"was trained with another teacher \("):
        train_and_evaluate(resolved(distilled), tmp_path / "run")
    card.write_text('{"mean": [0.4, 0.5], "image_size": 8}')
    with pytest.raises(ConfigError, match=r"its card's mean has 2 values, expected one or 1"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")


@pytest.mark.full
def test_a_resumed_run_measures_a_teacher_of_another_dtype_again(distilled, tmp_path, monkeypatch):
    stop_after(monkeypatch, distilled, tmp_path / "run", step=3)
    distilled.teacher.dtype, distilled.teacher.max_fold_kl = "bfloat16", 3e-6
    with pytest.raises(RunError, match="freezing changes the teacher"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")
    distilled.teacher.dtype = "float32"
    assert train_and_evaluate(resolved(distilled), tmp_path / "run")["resumed_at"] == [3]


@pytest.mark.full
def test_without_an_evaluation_split_the_gate_reads_training_images(distilled, tmp_path):
    distilled.source.validation = distilled.source.test = None
    distilled.teacher.dtype, distilled.teacher.max_fold_kl = "bfloat16", 1e-9
    with pytest.raises(RunError, match="freezing changes the teacher"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")
    distilled.teacher.max_fold_kl, distilled.teacher.min_accuracy = 0.5, 0.1
    with pytest.raises(RunError, match=r"min_accuracy=0.1 cannot be checked: there is no evaluation split with labels"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")
    distilled.teacher.min_accuracy = 0.0
    train_and_evaluate(resolved(distilled), tmp_path / "run")
    (found,) = json.loads((tmp_path / "run" / "preflight.json").read_text())["teachers"]
    assert found["accuracy"] is None and 1e-9 < found["fold_kl"] < 0.5


def test_a_vit_is_for_one_resolution(distilled, tmp_path):
    vit = weights.ConfigArchitecture(ModelConfig("vit_small", patch_size=8), 10, 1, 8, Card(8))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), vit.abstract_variables())
    weights.save(tmp_path / "vit.npz", weights.Network(vit, variables))
    distilled.teacher.path, distilled.teacher.image_size = str(tmp_path / "vit.npz"), (16,)
    distilled.view.image_size = 16
    with pytest.raises(
        RunError,
        match=r"vit.npz is not for images of 16 px: its params/pos_embedding has shape \(1, 2, 384\), at this size it "
        r"would be \(1, 5, 384\)",
    ):
        teachers.read(resolved(distilled), tmp_path)


@pytest.mark.full
def test_a_resume_does_not_need_what_the_run_began_from(tiny, tmp_path, monkeypatch):
    start = save_bit(tmp_path / "start.npz")
    tiny.student.name, tiny.student.features = "bit", ()
    tiny.student.blocks, tiny.student.width = (1,), 0.125
    tiny.init_from = str(start)
    stop_after(monkeypatch, tiny, tmp_path / "run", step=3)
    start.unlink()
    assert evaluate_run(tmp_path / "run", "validation", "latest")["num_examples"] == 200
    assert train_and_evaluate(resolved(tiny), tmp_path / "run")["resumed_at"] == [3]


def test_classes_in_another_order_in_the_evaluation_split(tiny, tmp_path, monkeypatch):
    def reordered(options, split):
        return array_source(split, np.zeros((200, 8, 8), np.uint8), np.arange(200) % 10, CLASSES[::-1])

    own = types.ModuleType("own_data")
    own.reordered = reordered
    monkeypatch.setitem(sys.modules, "own_data", own)
    tiny.eval_source.name, tiny.eval_source.test = "own_data:reordered", "test"
    with pytest.raises(DataError, match="class 0 of digits train is '0', but '9' in the evaluation split"):
        train_and_evaluate(resolved(tiny), tmp_path / "run")


@pytest.mark.full
def test_a_teacher_is_folded_and_still_known_by_its_file(distilled, tmp_path):
    config = resolved(distilled)
    (network,) = teachers.read(config, tmp_path)
    (variables,) = teachers.freeze([network], config, sharding.make_mesh(), ()).variables
    kernel = variables["params"]["root_block"]["conv_root"]["kernel"]
    np.testing.assert_allclose(np.mean(kernel, (0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(np.mean(np.square(kernel), (0, 1, 2)), 1, atol=1e-5)
    train_and_evaluate(config, tmp_path / "run")
    kept = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert kept["teacher"] == teachers.identity([network])
    assert kept["teachers"][0]["sha256"] == weights.sha256(network.variables) != weights.sha256(variables)


@pytest.mark.full
def test_a_teacher_that_changes_during_the_run_is_noticed(distilled, tmp_path, monkeypatch):
    honest = loop._finish

    def finish(run, *args):
        changed = run.teacher.replace(variables=jax.tree.map(lambda x: x + 1e-3, run.teacher.variables))
        checked = dataclasses.replace(run.checked_teacher, teacher=changed)
        return honest(dataclasses.replace(run, checked_teacher=checked), *args)

    monkeypatch.setattr(loop, "_finish", finish)
    with pytest.raises(RunError, match="the teacher's weights changed during the run"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")


def test_logits_come_in_the_order_of_the_datas_classes(distilled, tmp_path):
    config, mesh = resolved(distilled), sharding.make_mesh()
    (network,) = teachers.read(config, tmp_path)
    view = jnp.asarray(np.random.default_rng(0).random((8, 8, 8, 1)), jnp.float32)
    logits = teacher_logits(teachers.plain(network, config, mesh, CLASSES), view)
    shifted = teacher_logits(teachers.plain(network, config, mesh, CLASSES[3:] + CLASSES[:3]), view)
    np.testing.assert_array_equal(shifted, jnp.roll(logits, -3, axis=1))
    with pytest.raises(ConfigError, match="the teacher has no class 'ten' of the data"):
        teachers.plain(network, config, mesh, (*CLASSES[:9], "ten"))


@pytest.mark.full
def test_teachers_and_student_each_have_their_own_resolution(distilled, tmp_path):
    """The view has 16 pixels; the teachers see 8 and 16, the student 8."""
    large = save_bit(tmp_path / "large.npz", image_size=16, seed=1)
    distilled.teacher.path = f"{distilled.teacher.path},{large}"
    distilled.view.image_size, distilled.view.student_size = 16, 8
    config = resolved(distilled)
    summary = train_and_evaluate(config, tmp_path / "run")
    assert weights.load(tmp_path / "run").architecture.card.image_size == 8
    source = open_source(config.source, "validation", num_classes=10, image_size=8, channels=1)
    images, labels = zip(*source.read(np.arange(200)), strict=True)
    accuracy = (big_distill.load(tmp_path / "run").predict(images).argmax(-1) == np.array(labels)).mean()
    assert accuracy == summary["scores"]["validation"]["accuracy"]
    assert summary["teacher"]["num_params"] == 2 * weights.num_params(weights.load(large).variables["params"])
    distilled.teacher.image_size = (8, 32)
    with pytest.raises(ConfigError, match=r"needs images of 32 px, config.view.image_size=16"):
        train_and_evaluate(resolved(distilled), tmp_path / "other")
    distilled.teacher.image_size = (8, 16, 16)
    with pytest.raises(ConfigError, match="expected one size, or one for each of the 2 teachers"):
        resolved(distilled)
    distilled.view.student_size = 32
    with pytest.raises(ConfigError, match=r"config.view.student_size=32 is larger than config.view.image_size=16"):
        resolved(distilled)


@pytest.mark.full
def test_out_of_domain_images_without_labels(distilled, tmp_path):
    """The student learns from a flat folder and is judged on the digits."""
    (tmp_path / "images").mkdir()
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 256, (9, 9), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    distilled.source.name, distilled.source.path, distilled.source.num_train_examples = (
        "folder",
        str(tmp_path / "images"),
        40,
    )
    distilled.eval_source.test = "validation"
    with pytest.raises(ConfigError, match=r"config.eval_source has fields that are set, but no name"):
        resolved(distilled)
    distilled.eval_source.name = "digits"
    summary = train_and_evaluate(resolved(distilled), tmp_path / "run")
    assert summary["scores"]["test"]["num_examples"] == 200
    assert summary["student"]["accuracy"] is not None and summary["agreement"] is not None

    for index, name in enumerate(("cats", "dogs")):  # labels of another set: they mean nothing here
        (tmp_path / "labelled" / name).mkdir(parents=True)
        for image in range(20 * index, 20 * index + 20):
            (tmp_path / "images" / f"{image}.png").rename(tmp_path / "labelled" / name / f"{image}.png")
    distilled.source.path = str(tmp_path / "labelled")
    train_and_evaluate(resolved(distilled), tmp_path / "labelled_run")
    assert weights.load(tmp_path / "labelled_run").architecture.card.class_names == CLASSES
    distilled.eval_source.name, distilled.eval_source.path = "folder", distilled.source.path
    distilled.eval_source.test = "train"
    with pytest.raises(DataError, match=r"config.num_classes=10, but .* has 2: cats, dogs"):
        train_and_evaluate(resolved(distilled), tmp_path / "other")


def test_a_head_is_replaced_by_name(tiny, trained, tmp_path, capsys):
    tiny.student.features = (8, 16)
    tiny.init_from = str(trained)
    tiny.init_fresh = "head/.*"
    tiny.optimizer.lr = 0.0
    tiny.num_classes, tiny.source.name, tiny.source.num_train_examples = 3, "random", 64
    train_and_evaluate(resolved(tiny), tmp_path / "run")
    before, after = (weights.load(path).variables["params"] for path in (trained, tmp_path / "run"))
    np.testing.assert_array_equal(before["conv1"]["kernel"], after["conv1"]["kernel"])
    assert after["head"]["kernel"].shape[1] == 3
    said = "4 parameters loaded, 2 new (params/head/bias, params/head/kernel), 2 unused (params/head/bias"
    assert said in capsys.readouterr().out
    tiny.init_fresh = None
    with pytest.raises(RunError, match=r"params/head/bias is \(10,\) there and \(3,\) here; config.init_fresh names"):
        train_and_evaluate(resolved(tiny), tmp_path / "other")


def hashes(workdir):
    return [
        (line["train/view_hash"], line["train/teacher_view_hash"])
        for line in read_metrics(workdir)
        if "train/view_hash" in line
    ]


@pytest.mark.full
@pytest.mark.parametrize("regime", cases("function_matching", full=["fixed", "independent", "consistent"]))
def test_a_run_can_prove_who_saw_what(distilled, tmp_path, regime):
    distilled.view.regime = regime
    distilled.log_view_hash = True
    train_and_evaluate(resolved(distilled), tmp_path / "run")
    seen = hashes(tmp_path / "run")
    assert len(seen) == len(set(seen)) == 6
    assert all((student == teacher) is (regime in ("consistent", "function_matching")) for student, teacher in seen)


@pytest.mark.full
def test_a_broken_pipeline_does_not_pass_the_proof(distilled, tmp_path, monkeypatch):
    honest = TrainPipeline.batch

    def broken(self, step):
        batch = honest(self, step)
        return {**batch, "teacher_pixels": batch["pixels"][:, :, ::-1]}

    monkeypatch.setattr(TrainPipeline, "batch", broken)
    distilled.log_view_hash = True
    train_and_evaluate(resolved(distilled), tmp_path / "run")
    assert all(student != teacher for student, teacher in hashes(tmp_path / "run"))

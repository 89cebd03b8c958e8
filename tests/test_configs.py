"""Checks that every config in configs/ runs `:smoke`, says what it must, and has the papers' settings."""

import dataclasses
import itertools
import pathlib
import re

import numpy as np
import pytest

from big_distill import models
from big_distill.config import Config, ModelConfig
from big_distill.config.fields import fields_of
from big_distill.config.template import load_config, smoke
from big_distill.models import FAMILIES, efficientnet_lite, mobilenet_v3, vit
from big_distill.models.inverted_residual import Unit
from big_distill.resolve import resolve
from big_distill.run_dir.metrics import read_metrics
from big_distill.training.loop import train_and_evaluate

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
REQUIRED = """digits_fm mnist_teacher mnist_kd cifar10_teacher cifar10_kd flowers_teacher flowers_fm flowers64_fm
pets_fm food_fm sun_fm imagenet_fm flowers64_teacher deep_compression_lenet300 deep_compression_lenet5 prune_six_layer
prune_distill_cifar10 lowrank_mnist qat_int8_mnist cifar10_patience cifar10_equal_bytes"""


def marked(path):
    """Leaves most runs to --all, and to -m slow what another run shows, too.

    The paper's other sets differ from flowers_fm in numbers, flowers64_teacher is an EfficientNet-Lite on labels, and
    the README's command for photos is a :smoke of flowers64_fm.
    """
    if path.stem in ("pets_fm", "food_fm", "sun_fm", "imagenet_fm", "flowers64_teacher", "flowers64_fm"):
        return pytest.param(path, marks=pytest.mark.slow)
    return path if path.stem == "digits_fm" else pytest.param(path, marks=pytest.mark.full)


def test_all_are_there():
    assert {path.stem for path in CONFIGS} >= set(REQUIRED.split())


@pytest.mark.parametrize("path", [marked(path) for path in CONFIGS], ids=lambda p: p.stem)
def test_smoke(path, tmp_path):
    full = load_config(path)
    small = load_config(path, "smoke")
    assert small.num_classes == full.num_classes and small.view.image_size == full.view.image_size
    config = resolve(small, 1, "cpu")
    assert (config.total_steps, config.batch_size, config.optimizer.warmup_steps) == (20, 8, 2)
    summary = train_and_evaluate(config, tmp_path)
    assert summary["steps"] == 20
    assert (summary["teacher"] is not None) == bool(full.teacher.path or full.teacher.config)


SMOKED = [name for name in FAMILIES if name not in ("cnn", "efficientnet_lite1", "efficientnet_lite2", "vit_base")]
FIELDS = {  # name of a model -> fields that make it small; digits_fm itself has a CNN
    "mlp": {"features": (16,)},
    "bit": {"blocks": (1,)},
    "vit_small": {"patch_size": 8},
}


@pytest.fixture
def small_families(monkeypatch):
    """Makes the families of one size small. Networks that were built before, and in between, are forgotten."""
    units = Unit(16, 8, 3, 1, "relu"), Unit(24, 8, 3, 2, "relu")
    monkeypatch.setattr(efficientnet_lite, "units", lambda *_: units)
    monkeypatch.setattr(mobilenet_v3, "units", lambda *_: units)
    monkeypatch.setitem(vit.SIZES, "vit_small", (12, 2, 3))
    models.build.cache_clear()
    yield
    models.build.cache_clear()


@pytest.mark.parametrize("name", SMOKED)
@pytest.mark.usefixtures("small_families")
def test_a_smoke_of_each_family(name, train_once, tmp_path):
    """A small network of the family learns from a teacher."""
    config = load_config(ROOT / "configs" / "digits_fm.py")
    for view in (config.view, config.teacher.config.view):
        view.image_size = 32
    config.student.update(dataclasses.asdict(ModelConfig(name)))
    small = smoke(config)
    small.student.update(FIELDS.get(name, {}))
    train_once(resolve(small.teacher.config, 1, "cpu"), tmp_path / "teacher")
    small.teacher.config, small.teacher.path = None, str(tmp_path / "teacher")
    summary = train_and_evaluate(resolve(small, 1, "cpu"), tmp_path / "run")
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert summary["steps"] == 20 and len(losses) == 4 and np.isfinite(losses).all()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
@pytest.mark.parametrize("arg", ["", "smoke"])
def test_every_unset_field_can_be_set_from_the_command_line(path, arg):
    config = load_config(path, arg)
    for name, field, type_ in fields_of():
        if field.default is None and type_ is not Config:
            *parents, last = name.split(".")[1:]
            for nested in filter(None, (config, config.teacher.config, config.init_config)):
                for parent in parents:
                    nested = nested[parent]
                assert nested.get_type(last) is type_, name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_docstring_has_the_command_and_whether_it_was_run(path):
    text = path.read_text()
    assert f"python -m big_distill.main --config=configs/{path.name}" in text
    assert re.search(r"(Run|run) here", text)


def arguments(path):
    """Lists every combination of the choices of a config's `parse_arg`, the switch `smoke` aside."""
    (call,) = re.findall(r"parse_arg\(arg, (.*)smoke=False\)", path.read_text())
    choices = [
        [f"{name}={value}" for value in values.split("|")] for name, values in re.findall(r'(\w+)="(.+?)"', call)
    ]
    return [",".join(chosen) for chosen in itertools.product(*choices)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_choice_resolves_and_has_a_smoke(path):
    for chosen in arguments(path):
        resolve(load_config(path, chosen), 4, "tpu")
        resolve(load_config(path, f"{chosen},smoke"), 1, "cpu")


def resolved(name, arg=""):
    return resolve(load_config(next(p for p in CONFIGS if p.stem == name), arg), 1, "cpu")


@pytest.mark.parametrize(("name", "epochs"), [("mnist_kd", 25), ("cifar10_kd", 10)])
def test_the_student_papers_settings(name, epochs):
    config = resolved(name)
    assert config.objective.name == "hinton" and config.teacher.config.total_epochs == epochs
    assert (config.student.features, config.teacher.config.student.features) == ((16, 32), (256, 512))
    assert (config.objective.temperature, config.objective.alpha, config.objective.scale_soft_by_t2) == (10, 0.9, False)
    assert (config.total_epochs, config.batch_size, config.optimizer.lr) == (epochs, 64, 1e-3)


@pytest.mark.parametrize(
    ("name", "variant"), [("mnist_kd", "tuned"), ("cifar10_kd", "tuned"), ("cifar10_kd", "patient")]
)
def test_what_is_tuned_holds_a_part_of_the_training_split_out(name, variant):
    paper, tuned, alone = (resolved(name, arg) for arg in ("", f"variant={variant}", f"variant={variant},teacher=none"))
    teacher = tuned.teacher.config
    for config, as_paper in ((tuned, paper), (alone, paper), (teacher, paper.teacher.config)):
        assert config.student == as_paper.student
        learnt = as_paper.source.num_train_examples - 5_000
        assert config.source.num_train_examples == learnt
        assert (config.source.train, config.source.validation) == (f"train[:{learnt}]", f"train[{learnt}:]")
    assert teacher.total_epochs == paper.teacher.config.total_epochs
    assert tuned.total_epochs == alone.total_epochs == (100 if variant == "patient" else paper.total_epochs)
    assert teacher == resolved(name, "variant=tuned").teacher.config


def test_patience_is_function_matching_and_no_more():
    """No field of Hinton's objective is left over; it would be part of the fingerprint."""
    objective = resolved("cifar10_kd", "variant=patient").objective
    assert objective == dataclasses.replace(Config().objective, name="function_matching", temperature=2.0)


@pytest.mark.parametrize("network", ["small", "large"])
def test_equal_bytes_differ_in_the_method_alone(network):
    methods = ("prune_distill", "prune", "distill", "labels")
    found = {name: resolved("cifar10_equal_bytes", f"method={name},network={network}") for name in methods}
    for name, config in found.items():
        first = config.init_config or config.teacher.config
        assert (config.source.train, config.source.validation) == ("train[:45000]", "train[45000:]")
        assert config.view == dataclasses.replace(found["prune"].view, regime=config.view.regime)
        assert (config.batch_size, config.optimizer) == (128, found["prune"].optimizer)
        taught = 0 if name == "labels" or not config.compress.sparsity else first.total_epochs
        assert config.total_epochs + taught == 40, "as many epochs for all"
        assert bool(config.compress.sparsity) == name.startswith("prune")
        assert (config.teacher.config is None) == (name in ("prune", "labels"))
        assert (config.objective.name == "function_matching") == (config.teacher.config is not None)
        if first:
            assert first.student.features == ((16, 32) if network == "small" else (64, 128))
    pruned, narrow = (found[name].student.features for name in ("prune", "labels"))
    assert found["prune_distill"].student.features == pruned and found["distill"].student.features == narrow
    assert narrow < pruned


def test_patience_is_taught_by_who_saw_more():
    config, alone = resolved("cifar10_patience"), resolved("cifar10_patience", "teacher=none")
    teacher = config.teacher.config
    assert (config.source.train, alone.source.train, teacher.source.train) == (
        "train[:2000]", "train[:2000]", "train[:45000]",
    )  # fmt: skip
    assert {c.source.validation for c in (config, alone, teacher)} == {"train[45000:]"}
    assert (config.student.features, teacher.student.features) == ((16, 32), (64, 128))
    assert (config.view.regime, alone.objective.name) == ("function_matching", "cross_entropy")
    assert (config.total_epochs, config.optimizer) == (alone.total_epochs, alone.optimizer)


def test_flowers_choose_nothing_on_what_they_learn_from():
    teacher = resolved("flowers64_teacher", "data=trainval")
    assert (teacher.source.train, teacher.source.num_train_examples) == ("train+validation", 2040)
    assert not teacher.source.validation and resolved("flowers64_teacher", "data=train").source.validation
    student, alone = (resolved("flowers64_fm", f"teacher={name}") for name in ("lite0", "none"))
    for config in (student, alone):
        assert (config.source.train, config.source.num_train_examples) == ("train", 1020)
    assert (student.view.image_size, student.view.size_for_student, alone.view.image_size) == (128, 64, 64)
    assert (student.student, student.optimizer, student.total_epochs) == (
        alone.student, alone.optimizer, alone.total_epochs,
    )  # fmt: skip


def test_a_pruned_resnet_matches_its_dense_self():
    for structure, sparsity in (("channels", 0.5), ("weights", 0.75)):
        config = resolved("prune_distill_cifar10", f"structure={structure}")
        assert config.init_from == "teacher" and config.objective.name == "function_matching"
        assert config.teacher.config.student.name == config.student.name == "bit"
        assert (config.source.train, config.teacher.config.source.train) == ("train[:45000]", "train[:45000]")
        assert config.source.validation == "train[45000:]"
        assert (config.compress.structure, config.compress.sparsity) == (structure, sparsity)


@pytest.mark.parametrize(
    ("name", "variant", "settings"),
    [  # epochs, steps, temperature, lr, weight decay: Beyer et al. 2022, Table 4 and section 5
        ("flowers_fm", "fast", (10_000, 19_921, 10, 3e-3, 3e-4)),
        ("flowers_fm", "medium", (100_000, 199_218, 1, 1e-3, 1e-4)),
        ("flowers_fm", "long", (1_000_000, 1_992_187, 1, 3e-4, 1e-5)),
        ("flowers_fm", "student_paper", (1_000, 1_992, 10, 3e-3, 1e-3)),
        ("pets_fm", "fast", (1_000, 6_468, 5, 1e-2, 1e-3)),
        ("pets_fm", "medium", (3_000, 19_406, 10, 3e-3, 3e-4)),
        ("pets_fm", "long", (30_000, 194_062, 2, 3e-3, 1e-5)),
        ("food_fm", "fast", (100, 13_315, 10, 1e-2, 1e-3)),
        ("food_fm", "medium", (1_000, 133_154, 10, 1e-3, 3e-4)),
        ("food_fm", "long", (3_000, 399_462, 5, 1e-2, 1e-4)),
        ("sun_fm", "fast", (100, 14_868, 10, 1e-2, 1e-3)),
        ("sun_fm", "long", (3_000, 446_062, 10, 1e-2, 3e-5)),
        ("sun_fm", "medium", (1_000, 148_687, 10, 3e-3, 1e-4)),
        ("imagenet_fm", None, (1_200, 367_835, 1, 0.03, 3e-4)),
    ],
)
def test_papers_settings(name, variant, settings):
    path = next(p for p in CONFIGS if p.stem == name)
    config = resolve(load_config(path, f"variant={variant}" if variant else ""), 8, "tpu")
    optimizer = config.optimizer
    got = (config.total_epochs, config.total_steps, config.objective.temperature, optimizer.lr, optimizer.weight_decay)
    assert got == settings
    assert (config.batch_size, optimizer.warmup_steps) == ((4096, 5000) if name == "imagenet_fm" else (512, 1500))
    assert (optimizer.clip_norm, optimizer.mu_dtype, optimizer.decay_scaled_by_lr) == (1.0, "bfloat16", False)
    assert (config.view.regime, config.view.mixup, config.view.area_min) == ("function_matching", 1.0, 0.05)
    assert config.dtype == "bfloat16" and config.objective.name == "function_matching"

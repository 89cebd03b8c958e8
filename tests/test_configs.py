"""Every config in configs/ runs `:smoke`, says what it must, and has the papers' settings."""

import itertools
import pathlib
import re

import pytest

from big_distill.config import Config, fields_of
from big_distill.config_files import load_config
from big_distill.resolve import resolve
from big_distill.train import train_and_evaluate

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
REQUIRED = """digits_fm mnist_teacher mnist_kd cifar10_teacher cifar10_kd flowers_teacher flowers_fm flowers64_fm
pets_fm food_fm sun_fm imagenet_fm flowers64_teacher deep_compression_lenet300 deep_compression_lenet5 prune_six_layer
prune_distill_cifar10 lowrank_mnist qat_int8_mnist cifar10_patience cifar10_equal_bytes"""


def marked(path):
    """The paper's other sets differ from flowers_fm in numbers, which are checked below: their runs are slow tests."""
    return pytest.param(path, marks=pytest.mark.slow) if path.stem in ("pets_fm", "food_fm", "sun_fm") else path


def test_all_are_there():
    assert {path.stem for path in CONFIGS} >= set(REQUIRED.split())


@pytest.mark.parametrize("path", [marked(path) for path in CONFIGS], ids=lambda p: p.stem)
def test_smoke(path, tmp_path, one_device):
    full = load_config(path)
    small = load_config(path, "smoke")
    assert small.num_classes == full.num_classes and small.view.image_size == full.view.image_size
    config = resolve(small, 1, "cpu")
    assert (config.total_steps, config.batch_size, config.optimizer.warmup_steps) == (20, 8, 2)
    summary = train_and_evaluate(config, tmp_path)
    assert summary["steps"] == 20
    assert (summary["teacher"] is not None) == bool(full.teacher.path or full.teacher.config)


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
    """Every combination of what a config's `parse_arg` lets choose, the switch `smoke` aside."""
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


def test_the_student_papers_settings():
    path = next(p for p in CONFIGS if p.stem == "cifar10_kd")
    config = resolve(load_config(path), 1, "cpu")
    assert (config.student.features, config.teacher.config.student.features) == ((16, 32), (256, 512))
    assert (config.objective.temperature, config.objective.alpha, config.objective.scale_soft_by_t2) == (10, 0.9, False)
    assert (config.total_epochs, config.batch_size, config.optimizer.lr) == (10, 64, 1e-3)


@pytest.mark.parametrize(
    ("name", "variant"), [("mnist_kd", "tuned"), ("cifar10_kd", "tuned"), ("cifar10_kd", "patient")]
)
def test_what_is_tuned_holds_a_part_of_the_training_split_out(name, variant):
    path = next(p for p in CONFIGS if p.stem == name)
    paper, tuned, alone = (
        resolve(load_config(path, arg), 1, "cpu")
        for arg in ("", f"variant={variant}", f"variant={variant},teacher=none")
    )
    teacher = tuned.teacher.config
    for config, as_paper in ((tuned, paper), (alone, paper), (teacher, paper.teacher.config)):
        assert config.student == as_paper.student
        learnt = as_paper.source.num_train_examples - 5_000
        assert config.source.num_train_examples == learnt
        assert (config.source.train, config.source.validation) == (f"train[:{learnt}]", f"train[{learnt}:]")
    assert teacher.total_epochs == paper.teacher.config.total_epochs
    assert tuned.total_epochs == alone.total_epochs == (100 if variant == "patient" else paper.total_epochs)
    assert teacher == resolve(load_config(path, "variant=tuned"), 1, "cpu").teacher.config


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

"""Checks the names of the user's own functions, and the options that they read."""

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from flax import linen as nn

from big_distill import cli, models
from big_distill.config import fingerprint, parse_options, user_code
from big_distill.data import array_source
from big_distill.errors import ConfigError
from big_distill.resolve import resolve
from big_distill.training.loop import train_and_evaluate

CONSTANT = 3


def test_finds_a_function():
    assert user_code.load("math:sqrt", "config.objective.name")(9) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:loss", "expected your own module:function; No module named 'no_such_module'"),
        (f"{__name__}:missing", "has no attribute 'missing'"),
        (f"{__name__}:CONSTANT", "expected a function, got int"),
        (":", "expected your own module:function"),
    ],
)
def test_names_the_field_and_the_reason(name, reason):
    with pytest.raises(ConfigError, match=f"^config.objective.name='{name}': .*{reason}") as error:
        user_code.load(name, "config.objective.name")
    assert "\n" not in str(error.value)


READ = {}
DEFAULTS = {"units": 4, "scale": 1.0, "shift": False, "widths": (1, 2), "note": "none"}


def own_model(config, num_classes, dtype):
    READ["student"] = parse_options(config.options, DEFAULTS, "config.student.options")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, image, train=False):
            hidden = nn.Dense(READ["student"]["units"], name="hidden")(image.reshape(len(image), -1))
            return nn.Dense(num_classes, name="head")(nn.relu(hidden))

    return models.from_linen(Net())


def own_objective(config):
    READ["objective"] = parse_options(config.options, DEFAULTS, "config.objective.options")
    return lambda student, teacher, labels: READ["objective"]["scale"] * jnp.square(student - labels).sum(-1)


def own_source(config, split):
    READ["source"] = parse_options(config.options, DEFAULTS, "config.source.options")
    pixels = np.arange(80 * 64, dtype=np.int64).reshape(80, 8, 8, 1) % 255
    return array_source(f"own {split}", pixels.astype(np.uint8), np.arange(80) % 10, [str(k) for k in range(10)])


@pytest.fixture
def own(tiny):
    """Makes a config whose network, objective and source are the user's own."""
    tiny.student.update(name=f"{__name__}:own_model", features=())
    tiny.objective.name = f"{__name__}:own_objective"
    tiny.source.update(name=f"{__name__}:own_source", num_train_examples=80)
    return tiny


def test_own_code_reads_its_options(own, tmp_path):
    own.student.options = ("units=6",)
    own.objective.options = ("scale=2.5", "shift=true")
    own.source.options = ("widths=(3,4,5)", "note=a=b")
    config = resolve(own, 1, "cpu")
    assert train_and_evaluate(config, tmp_path)["student"]["num_params"] == 64 * 6 + 6 + 6 * 10 + 10
    assert READ["objective"] == DEFAULTS | {"scale": 2.5, "shift": True}
    assert READ["source"] == DEFAULTS | {"widths": (3, 4, 5), "note": "a=b"}


def test_only_options_that_are_set_change_the_fingerprint(own):
    before = fingerprint(resolve(own, 1, "cpu"))
    own.student.options = ()
    assert fingerprint(resolve(own, 1, "cpu")) == before
    own.student.options = ("units=6",)
    assert fingerprint(resolve(own, 1, "cpu")) != before


@pytest.mark.parametrize("text", ["('scale=2','units=3')", "('scale=2',)", "scale=2", "()"])
def test_options_on_the_command_line(text):
    values, argv = flags.FlagValues(), ["--config=configs/digits_fm.py", f"--config.objective.options={text}"]
    cli.define_config_flag(values, argv)
    cli.parse_flags(["main", *argv], values)
    wanted = {"scale": 2.0 if "scale" in text else 1.0, "units": 3 if "units" in text else 4}
    assert parse_options(values.config.objective.options, DEFAULTS, "") == DEFAULTS | wanted


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("unit=3", "'unit' is not an option; did you mean 'units'?"),
        ("units", "expected units=VALUE"),
        ("units=3.5", "expected units=an integer"),
        ("scale=fast", "expected scale=a number"),
        ("scale=nan", "expected scale=a number"),
        ("shift=maybe", "expected shift=True or False"),
        ("widths=3,x", "expected widths=numbers, such as 1,2"),
        ("note=again", "expected note=VALUE once"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(option, message):
    with pytest.raises(ConfigError) as error:
        parse_options(("note=first", option), DEFAULTS, "config.student.options")
    assert str(error.value) == f"config.student.options={option!r}: {message}"


@pytest.mark.parametrize("part", ["student", "objective", "source"])
def test_what_is_ours_reads_no_options(tiny, part):
    tiny[part].options = ("units=3",)
    with pytest.raises(ConfigError, match=f"^config.{part}.options='units=3': 'units' is not an option; there are no"):
        resolve(tiny, 1, "cpu")


def test_an_option_without_a_value_is_refused_before_any_code_runs(own):
    own.source.options = ("units",)
    with pytest.raises(ConfigError, match=r"^config.source.options='units': expected NAME=VALUE$"):
        resolve(own, 1, "cpu")

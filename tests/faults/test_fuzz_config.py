"""Checks that random configs (of a run directory, the command line or a program) are resolved, or give one line."""

import copy
import json
import pathlib

import pytest
from absl import flags
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import ODD_NUMBERS, ODD_TEXTS, ODD_VALUES, assert_one_line, bounded, json_mutations, mutations

from big_distill import cli
from big_distill.config import Config, differences, fingerprint, from_dict, to_dict
from big_distill.config.fields import fields_of
from big_distill.config.template import load_config
from big_distill.errors import BigDistillError, ConfigError, RunError
from big_distill.resolve import resolve
from big_distill.run_dir import layout

FILE = pathlib.Path(__file__).parents[2] / "configs" / "digits_fm.py"
RESOLVED = resolve(load_config(FILE), 1, "cpu")
KEPT = {"fingerprint": fingerprint(RESOLVED), "config": to_dict(RESOLVED)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def assert_read(folder):
    with bounded():
        try:
            config = layout.read_config(folder)
        except RunError as error:
            return assert_one_line(error, folder / "config.json")
        assert isinstance(config, Config) and from_dict(to_dict(config)) == config
        differences(RESOLVED, config, "maths")


@given(data=mutations(json.dumps(KEPT).encode()))
def test_fuzzed_bytes(data, folder):
    (folder / "config.json").write_bytes(data)
    assert_read(folder)


@given(values=json_mutations(KEPT))
def test_fuzzed_json(values, folder):
    (folder / "config.json").write_text(json.dumps(values))
    assert_read(folder)


@given(values=json_mutations(KEPT["config"]))
def test_fuzzed_fields(values):
    """A config file may set fields of any types."""
    if isinstance(values, dict):
        assert_resolves(copy.deepcopy(values))


def assert_resolves(config):
    with bounded():
        try:
            resolved = resolve(config, 1, "cpu")
        except BigDistillError as error:
            return assert_one_line(error, "config")
        assert isinstance(resolved, Config) and resolved.total_steps > 0
        assert json.dumps(to_dict(resolved), allow_nan=False)


PATHS = [path for prefix in ("config", "config.teacher.config") for path, *_ in fields_of(prefix=prefix)]
ODD_ARGUMENTS = [*ODD_TEXTS, *(str(value) for value in (*ODD_NUMBERS, *ODD_VALUES)), "(1,", "('a',)", "(1,)", "(1.5,2)"]
WORDS = st.sampled_from(ODD_ARGUMENTS) | st.text(max_size=10) | st.integers().map(str) | st.floats().map(str)
OVERRIDE = st.builds("--{}={}".format, st.sampled_from(PATHS), WORDS)
ODD_FLAG = st.builds("{}{}{}".format, st.sampled_from(("--", "--no", "-", "")), st.sampled_from(PATHS), WORDS)


def parsed(arguments):
    """Returns the config that the command line makes."""
    values, argv = flags.FlagValues(), ["main", f"--config={FILE}", *arguments]
    cli.define_config_flag(values, argv)
    cli.parse_flags(argv, values)
    return values.config


@given(overrides=st.lists(OVERRIDE, min_size=1, max_size=3) | st.lists(ODD_FLAG, min_size=1, max_size=2))
@example(overrides=["--config.optimizer.decay_mask=a{99999999999}"])
@example(overrides=["--config.total_epochs=1e308"])
@example(overrides=["--noconfig.seed[1]"])
@example(overrides=[f"--config.seed={10**400}"])
def test_fuzzed_flags(overrides):
    with bounded():
        try:
            config = parsed(overrides)
        except ConfigError as error:
            return assert_one_line(error)
    assert_resolves(config)


RIGHT = (
    "from big_distill.config_files import template\nfrom ml_collections import ConfigDict\ndef get_config(arg=''):\n"
)
PROGRAMS = {
    "raises": (RIGHT + "  raise OSError(2, 'two\\nlines')", r"line 4: FileNotFoundError: \[Errno 2\] two"),
    "leaves": (RIGHT + "  raise SystemExit(0)", "line 4: SystemExit: 0"),
    "leaves at once": ("import sys\nsys.exit()", "line 2: SystemExit: "),
    "never ends": (RIGHT + "  return get_config()", "RecursionError"),
    "returns nothing": (RIGHT + "  pass", "get_config returned NoneType, expected what template"),
    "returns a dictionary": (RIGHT + "  return {'seed': 1}", "get_config returned dict, expected what template"),
    "has no function": ("config = 5", "has no attribute 'get_config'"),
    "is not Python": ("{", "line 1: SyntaxError"),
    "is binary": ("\x00\x01", "SyntaxError|ValueError"),
    "typo": (RIGHT + "  c = template()\n  c.optimizer.lrr = 1\n", "assigns to 'lrr', which is not a field"),
    "wrong type": (RIGHT + "  c = template()\n  c.batch_size = 'many'\n", "line 5: TypeError: .*batch_size"),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_fails_is_one_line(kind, tmp_path):
    text, message = PROGRAMS[kind]
    path = tmp_path / "mine.py"
    path.write_text(text)
    with bounded(), pytest.raises(ConfigError, match=message) as error:
        parsed([f"--config={path}"])
    assert_one_line(error.value, path)


RETURNED = {
    "{}": r"config.num_classes must be set",
    "{'num_classes': 2, 'batch_size': 1}": r"config.view.image_size must be set",
    "{'num_classes': 2, 'batch_size': 1, 'student': 5}": r"config.student=5: expected fields, such as name",
    "{'num_classes': 2, 'batch_size': 1, 'total_epochs': 0 * 1e999}": r"config.total_epochs=nan: expected a finite",
    "{'studnet': 5}": r"config.studnet is not a field .*; did you mean 'student'",
    "{'seed': 10**5000}": r"config.seed: expected int, got an integer of 16610 bits",
}


@pytest.mark.parametrize("returned", RETURNED)
def test_a_program_may_return_any_config(returned, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{RIGHT}  return ConfigDict({returned})\n")
    with pytest.raises(ConfigError, match=RETURNED[returned]) as error:
        resolve(parsed([f"--config={path}"]), 1, "cpu")
    assert_one_line(error.value)


@pytest.mark.parametrize("name", ["no_such.py", "mine.txt", ".", ""])
def test_what_is_no_program_is_one_line(name, tmp_path):
    (tmp_path / "mine.txt").write_text("config")
    for flag in ([f"--config={tmp_path / name}"], ["--config", str(tmp_path / name)]):
        with pytest.raises(ConfigError, match=r"does not exist|expected a Python program") as error:
            parsed(flag)
        assert_one_line(error.value, "config file")


def test_a_flag_without_its_file_is_one_line():
    with pytest.raises(ConfigError, match="--config") as error:
        parsed(["--config"])
    assert_one_line(error.value)

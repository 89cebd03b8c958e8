"""The command as a user runs it, in processes of its own: mistakes, two processes. What may befall them: `faults/`."""

import json
import re

import numpy as np
import pytest
from processes import ROOT, cluster, losses, run

from big_distill import cli
from big_distill.errors import ConfigError

DIGITS = ["--config=configs/digits_fm.py", "--config.total_steps=20", "--config.teacher.config.total_steps=10",
          "--config.log_every_steps=1", "--config.eval_every_steps=5", "--config.teacher.config.eval_every_steps=5",
          "--config.optimizer.warmup_steps=2", "--config.teacher.config.optimizer.warmup_steps=2"]  # fmt: skip


on_one_worker = pytest.mark.xdist_group("whole")  # so that `whole` is run once


FM = "--config=configs/digits_fm.py"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([FM, "--config.optimzer.lr=1"], "config.optimzer is not a field of the config; did you mean 'optimizer'?"),
        ([FM, "--config.batch_size=abc"], "config.batch_size='abc': expected an integer"),
        (
            ["--config=configs/digits.py"],
            "config file configs/digits.py does not exist; did you mean 'configs/digits_fm.py'?",
        ),
        (
            ["--config=configs/mnist_teacher.py", "--config.teacher.config.total_steps=3"],
            "config.teacher.config.total_steps cannot be set: this config has no teacher.config",
        ),
        ([], "--config=FILE is needed, e.g. --config=configs/digits_fm.py"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args, message):
    status, out, err = run(*args)
    assert (status, out, err) == (2, "", f"big_distill: {message}\n")


@pytest.mark.parametrize(
    ("replaced", "by", "message"),
    [
        (
            "config.batch_size =",
            "config.batchsize =",
            "assigns to 'batchsize', which is not a field of the config; did",
        ),
        ("config.view.flip =", "config.flip =", "did you mean 'config.view.flip'?"),
        ("= 3e-3", "= lr", "NameError: name 'lr' is not defined"),
        ("return ", "", "get_config returned NoneType, expected what template() makes"),
        ("config.batch_size = 128", "config.batch_size = 'a'", "TypeError"),
        ("import parse_arg", "import (", "SyntaxError"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line(tmp_path, replaced, by, message):
    path = tmp_path / "mine.py"
    path.write_text((ROOT / "configs" / "digits_fm.py").read_text().replace(replaced, by))
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        cli._check_file(str(path), "")
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_training_imports_no_tensorflow(tmp_path):
    """Teacher, student, evaluations and checkpoints: of all that a run imports, Python says so on stderr."""
    status, _, stderr = run(f"{FM}:smoke", f"--workdir={tmp_path}", PYTHONPROFILEIMPORTTIME="1")
    imported = set(re.findall(r"^import time:.*\|\s+(\S+)$", stderr, re.MULTILINE))
    assert status == 0 and {"big_distill.train", "orbax.checkpoint", "clu.metric_writers"} <= imported
    assert not {name for name in imported if name.split(".")[0] == "tensorflow"}


def test_help_teaches():
    status, out, _ = run("--helpshort")
    assert status in (0, 1)
    for text in ("python -m big_distill.main --config=configs/digits_fm.py", "--config.objective.temperature", "maths"):
        assert text in out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    status, out, err = run(*DIGITS, f"--workdir={workdir}")
    assert status == 0, err
    assert "agreement" in out and f"run directory: {workdir}" in out
    return workdir


@on_one_worker
def test_two_processes_are_one(whole, tmp_path):
    teacher = f"--config.teacher.path={whole}/teacher"
    processes = cluster(*DIGITS, f"--workdir={tmp_path}", teacher)
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert "agreement" in outputs[0][0] and "agreement" not in outputs[1][0]  # process 0 alone speaks
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)
    assert len(losses(tmp_path)) == 20
    assert len(list(tmp_path.glob("events.out.tfevents*"))) == 1
    got, want = (json.loads((d / "summary.json").read_text()) for d in (tmp_path, whole))
    assert got["scores"]["test"]["num_examples"] == 397
    assert got["agreement"] == pytest.approx(want["agreement"], abs=1.01 / 397)


@on_one_worker
def test_evaluate_command(whole):
    status, out, err = run(f"--workdir={whole}", "--split=validation", "--json", module="big_distill.evaluate")
    assert status == 0, err
    want = json.loads((whole / "summary.json").read_text())["scores"]["validation"]
    assert json.loads(out) == pytest.approx(want, rel=1e-6)
    status, _, err = run("--workdir=nowhere", module="big_distill.evaluate")
    assert (status, err) == (4, "big_distill: nowhere is not a run directory: it has no config.json\n")

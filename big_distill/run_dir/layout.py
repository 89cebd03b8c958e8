"""What a run directory holds, by name, and the small files in it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import reprlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax

from big_distill.config import Config, differences, fingerprint, from_dict, to_dict
from big_distill.config.checks import check_numbers
from big_distill.errors import ConfigError, RunError
from big_distill.files import atomic
from big_distill.parallel.processes import on_first_process
from big_distill.terminal import say

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
WEIGHTS_FILE = "student.npz"
PARAMETERS_FILE = "parameters.txt"
CHECKPOINTS_DIR = "checkpoints"
PREFLIGHT_FILE = "preflight.json"
CALIBRATION_FILE = "calibration.json"
SENSITIVITY_FILE, SENSITIVITY_PLOT = "sensitivity.json", "sensitivity.svg"
PACK_FILE = "pack.json"
ARCHITECTURE_FILE = "architecture.json"
TEACHER_DIR = "teacher"
DAMAGED_DIR = "damaged"
INIT_DIR = "init"
RESUMES_FILE = "resumes.json"
ENVIRONMENT_FILE = "environment.json"
JSON_FILES = (
    CONFIG_FILE, SUMMARY_FILE, PREFLIGHT_FILE, CALIBRATION_FILE, SENSITIVITY_FILE, PACK_FILE, ARCHITECTURE_FILE,
    RESUMES_FILE, ENVIRONMENT_FILE,
)  # fmt: skip
_LOCK_FILE = "run.lock"
_NETWORK = {"accuracy": (float, None), "num_params": int}
_SUMMARY = {
    "student": _NETWORK,
    "teacher": (_NETWORK, None),
    "steps": int,
    "kl": (float, None),
    "agreement": (float, None),
    "images_per_second": (float, None),
    "wall_seconds": float,
    "params_sha256": str,
}
SESSIONS = [{"step": int, "versions": dict, "platform": str, "device_kind": str, "num_devices": int, "cpu": str}]


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: Config, prefix: str) -> Iterator[dict[str, Any] | None]:
    """Makes a run directory, or checks a config against what was trained there, and holds it against other runs.

    Process 0 does so for all. What it holds is a lock of the operating system, which ends with the process. `prefix` is
    what the config is called in messages: 'config', or 'config.teacher.config'. The value is the summary of a finished
    run, which is only read, else None.

    Raises:
      RunError: the directory holds a run with another maths field, another process trains there, or it cannot be
        written.
    """
    with contextlib.ExitStack() as held:

        def claim() -> dict[str, Any] | None:
            _check_same_run(workdir, config, prefix)
            summary = read_summary(workdir)
            if summary is None:
                held.enter_context(_locked(workdir))
            return summary

        yield on_first_process(claim)


def _check_same_run(workdir: pathlib.Path, config: Config, prefix: str) -> None:
    trained = any((workdir / CHECKPOINTS_DIR).glob("*")) or (workdir / SUMMARY_FILE).is_file()
    if trained:
        before = read_config(workdir)
        if changed := differences(before, config, "maths", prefix):
            raise RunError(
                f"{workdir} holds a run with another config ({'; '.join(changed)}): choose another --workdir"
                + ("" if prefix != "config" else ", or set config.init_from to start a new run from its student")
            )
        if changed := differences(before, config, "numerics", prefix):
            say(f"{workdir}: goes on with other numerics, so not bit-exactly ({'; '.join(changed)})")


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    path = workdir / _LOCK_FILE
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise RunError(f"run directory {workdir} cannot be written: {error}") from error
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.2)  # for `holder` to have looked, if that is who it was
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{workdir} is being trained by {_written_by_holder(path)}: wait for it, stop it, or choose another "
                "--workdir"
            ) from error
        except OSError as error:  # a file system without locks, as some network mounts are
            say(f"{workdir} cannot be locked ({error.strerror}): start no second run there")
        with contextlib.suppress(OSError):  # for the message above alone
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
            file.flush()
        yield


def holder(workdir: pathlib.Path) -> str | None:
    """Which process trains in a run directory, such as 'process 7 of tpu-0'; None: none that this machine can see."""
    path = workdir / _LOCK_FILE
    with contextlib.suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _written_by_holder(path)
        except OSError:
            return None
    return None


def status(held: bool, finished: bool, begun: bool) -> str:
    """Of a run: 'running' (a process holds it), 'finished', 'interrupted' (before its end) or 'new'."""
    return "running" if held else "finished" if finished else "interrupted" if begun else "new"


def _written_by_holder(path: pathlib.Path) -> str:
    return path.read_text(errors="replace").strip() or "another process"


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Keeps the config that is trained with from now on."""
    write_json(workdir / CONFIG_FILE, {"fingerprint": fingerprint(config), "config": to_dict(config)})


def read_config(workdir: pathlib.Path) -> Config:
    """The resolved config of a run.

    Raises:
      RunError: no run directory, or its config cannot be read, or was never resolved.
    """
    path = workdir / CONFIG_FILE
    try:
        return _completed(from_dict(json.loads(path.read_text())["config"]), "config")
    except FileNotFoundError as error:
        raise RunError(f"{workdir} is not a run directory: it has no {CONFIG_FILE}") from error
    except (ConfigError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _completed(config: Config, prefix: str) -> Config:
    """A config as `resolve` left it; one that was kept before `teacher.dtype` was a field is completed: as `dtype`.

    Raises:
      ConfigError: it says nowhere in what the run computes, or a number in it cannot be.
    """
    teacher, first = config.teacher, config.init_config
    if config.dtype == "auto":
        raise ConfigError(f"{prefix}.dtype='auto': expected what it became in this run, float32 or bfloat16")
    if teacher.config is not None:
        teacher = dataclasses.replace(teacher, config=_completed(teacher.config, f"{prefix}.teacher.config"))
    if teacher.dtype == "auto":
        teacher = dataclasses.replace(teacher, dtype=config.dtype)
    if first is not None:
        first = _completed(first, f"{prefix}.init_config")
    check_numbers(config, prefix)
    return dataclasses.replace(config, teacher=teacher, init_config=first)


def read_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The summary of a finished run, else None: also of one that lost its weights, which a resume makes again."""
    return written_summary(workdir) if (workdir / WEIGHTS_FILE).is_file() else None


def written_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The summary, whether or not the weights that it is about are there; None without one."""
    path = workdir / SUMMARY_FILE
    return read_json(path, _SUMMARY) if path.is_file() else None


def resumed_at(workdir: pathlib.Path) -> list[int]:
    """The steps a run was resumed at."""
    path = workdir / RESUMES_FILE
    return read_json(path, [int]) if path.is_file() else []


def note_resume(workdir: pathlib.Path, step: int) -> None:
    """Adds to `resumed_at`; at once, because a run may be killed before its next checkpoint."""
    if jax.process_index() == 0:
        write_json(workdir / RESUMES_FILE, [*resumed_at(workdir), step])


def sessions(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What computed a run: `step`, after which it began, and what `environment.environment` says; [] if unknown."""
    path = workdir / ENVIRONMENT_FILE
    return read_json(path, SESSIONS) if path.is_file() else []


def note_session(workdir: pathlib.Path, step: int, environment: dict[str, Any]) -> None:
    """Adds to `sessions`, unless it goes on as before; those whose steps are computed again now are forgotten."""
    if jax.process_index() == 0:
        before = [session for session in sessions(workdir) if session["step"] < step]
        if not before or before[-1] != {**environment, "step": before[-1]["step"]}:
            write_json(workdir / ENVIRONMENT_FILE, [*before, {"step": step, **environment}])


def read_json(path: pathlib.Path, form: Any) -> Any:
    """The value in a file of a run directory.

    Args:
      path: the file.
      form: what is expected: a type, [form of all items], {key: form of its value} (other keys may be there), or (form,
        None) for what may be null.

    Raises:
      RunError: it cannot be read, or has another form.
    """
    try:
        value = json.loads(path.read_text())
        _check_form(value, form, "it")
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}); remove it and the same command makes it again") from error
    return value


def _check_form(value: Any, form: Any, name: str) -> None:
    if isinstance(form, tuple):
        if value is None:
            return
        form = form[0]
    kind: Any = form if isinstance(form, type) else type(form)
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {reprlib.repr(value)}")
    if isinstance(form, list):
        for item in value:
            _check_form(item, form[0], f"an item of {name}")
    elif isinstance(form, dict):
        for key, inner in form.items():
            if key not in value:
                raise ValueError(f"{name} has no {key!r}")
            _check_form(value[key], inner, f"its {key!r}")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    atomic.write(path, (json.dumps(value, indent=2) + "\n").encode())

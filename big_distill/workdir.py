"""What a run directory holds, by name, and the small files in it."""

from __future__ import annotations

import json
import os
import pathlib
import reprlib
import types
from typing import Any

import jax

from big_distill.config import Config, differences, fingerprint, from_dict, to_dict
from big_distill.errors import ConfigError, RunError
from big_distill.metrics import say

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
PARAMETERS_FILE = "parameters.txt"
CHECKPOINTS_DIR = "checkpoints"
PREFLIGHT_FILE = "preflight.json"
CALIBRATION_FILE = "calibration.json"
SENSITIVITY_FILE, SENSITIVITY_PLOT = "sensitivity.json", "sensitivity.svg"
PACK_FILE = "pack.json"
ARCHITECTURE_FILE = "architecture.json"
TEACHER_DIR = "teacher"
INIT_DIR = "init"
_RESUMES_FILE = "resumes.json"
_NETWORK = {"accuracy": float | None, "num_params": int}
_SUMMARY = {
    **{"student": _NETWORK, "teacher": (_NETWORK, None), "steps": int},
    **{"kl": float | None, "agreement": float | None, "images_per_second": float | None, "wall_seconds": float},
}


def claim(workdir: pathlib.Path, config: Config, prefix: str) -> None:
    """Makes a run directory, or checks a config against what was trained there; writes nothing into it.

    `prefix` is what the config is called in messages: 'config', or 'config.teacher.config'.

    Raises:
      RunError: the directory holds a run with another maths field, or cannot be written.
    """
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
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            probe = workdir / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunError(f"run directory {workdir} cannot be written: {error}") from error


def write_config(workdir: pathlib.Path, config: Config) -> None:
    """Keeps the config that is trained with from now on."""
    write_json(workdir / CONFIG_FILE, {"fingerprint": fingerprint(config), "config": to_dict(config)})


def read_config(workdir: pathlib.Path) -> Config:
    """The resolved config of a run.

    Raises:
      RunError: no run directory, or its config cannot be read.
    """
    path = workdir / CONFIG_FILE
    try:
        return from_dict(json.loads(path.read_text())["config"])
    except FileNotFoundError as error:
        raise RunError(f"{workdir} is not a run directory: it has no {CONFIG_FILE}") from error
    except (ConfigError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def read_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The summary of a finished run, else None."""
    path = workdir / SUMMARY_FILE
    return read_json(path, _SUMMARY) if path.is_file() else None


def resumed_at(workdir: pathlib.Path) -> list[int]:
    """The steps a run was resumed at."""
    path = workdir / _RESUMES_FILE
    return read_json(path, [int]) if path.is_file() else []


def note_resume(workdir: pathlib.Path, step: int) -> None:
    """Adds to `resumed_at`; at once, because a run may be killed before its next checkpoint."""
    if jax.process_index() == 0:
        write_json(workdir / _RESUMES_FILE, [*resumed_at(workdir), step])


def read_json(path: pathlib.Path, form: Any) -> Any:
    """The value in a file of a run directory.

    Args:
      path: the file.
      form: what is expected: a type, a union of types, [form of all items], {key: form of its value} (other keys may be
        there), or (form, None) for what may be null.

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
    kind: Any = form if isinstance(form, type | types.UnionType) else type(form)
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
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(value, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

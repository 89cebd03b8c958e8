"""Names the files in a run directory, and reads and writes the small ones."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import reprlib
from typing import Any

import jax

from big_distill.config import Config, fingerprint, from_dict, to_dict
from big_distill.config.checks import check_fields
from big_distill.errors import ConfigError, RunError
from big_distill.files import atomic

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
PREFLIGHT_FILE = "preflight.json"
ACTIVATION_RANGES_FILE = "calibration.json"
SENSITIVITY_FILE = "sensitivity.json"
PACK_FILE = "pack.json"
ARCHITECTURE_FILE = "architecture.json"
RESUMES_FILE = "resumes.json"
ENVIRONMENT_FILE = "environment.json"
JSON_FILES = (
    *(CONFIG_FILE, SUMMARY_FILE, PREFLIGHT_FILE, ACTIVATION_RANGES_FILE, SENSITIVITY_FILE, PACK_FILE),
    *(ARCHITECTURE_FILE, RESUMES_FILE, ENVIRONMENT_FILE),
)
WEIGHTS_FILE = "student.npz"
DUPLICATES_FILE = "duplicates.csv"
PARAMETERS_FILE = "parameters.txt"
SENSITIVITY_PLOT = "sensitivity.svg"
CHECKPOINTS_DIR = "checkpoints"
DAMAGED_DIR = "damaged"
TEACHER_DIR = "teacher"
INIT_DIR = "init"
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


def write_config(workdir: pathlib.Path, config: Config, begun_with: str | None = None) -> None:
    """Writes the config that a run uses from now on, with the fingerprint that it began with; None: the config's."""
    write_json(workdir / CONFIG_FILE, {"fingerprint": begun_with or fingerprint(config), "config": to_dict(config)})


def read_config(workdir: pathlib.Path) -> Config:
    """Reads the resolved config of a run.

    Raises:
      RunError: this is no run directory, or its config cannot be read, or was never resolved.
    """
    path = workdir / CONFIG_FILE
    try:
        return _completed(from_dict(json.loads(path.read_text())["config"]), "config")
    except FileNotFoundError as error:
        raise RunError(f"{workdir} is not a run directory: it has no {CONFIG_FILE}") from error
    except (ConfigError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def read_fingerprint(workdir: pathlib.Path) -> str:
    """Reads the fingerprint that a run began with. Its directory is named after it, and its checkpoints hold it.

    That of the config differs from it if data or networks have moved since.
    """
    return read_json(workdir / CONFIG_FILE, {"fingerprint": str})["fingerprint"]


def _completed(config: Config, prefix: str) -> Config:
    """Returns a config as `resolve` left it. An old config, without `teacher.dtype`, gets its `dtype` there.

    Raises:
      ConfigError: `dtype` is 'auto', or a field has a value that it cannot have.
    """
    if config.dtype == "auto":
        raise ConfigError(f"{prefix}.dtype='auto': expected float32 or bfloat16, whichever this run computed in")
    teacher, nested, first = config.teacher, config.teacher.config, config.init_config
    nested = nested and _completed(nested, f"{prefix}.teacher.config")
    dtype = config.dtype if teacher.dtype == "auto" else teacher.dtype
    teacher = dataclasses.replace(teacher, config=nested, dtype=dtype)
    first = first and _completed(first, f"{prefix}.init_config")
    check_fields(config, prefix)
    return dataclasses.replace(config, teacher=teacher, init_config=first)


def read_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads the summary of a finished run. Returns None without it or its weights: a resume makes them again."""
    return written_summary(workdir) if (workdir / WEIGHTS_FILE).is_file() else None


def written_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Reads the summary, whether or not the weights that it is about are there. Returns None without one."""
    path = workdir / SUMMARY_FILE
    return read_json(path, _SUMMARY) if path.is_file() else None


def resumed_at(workdir: pathlib.Path) -> list[int]:
    """Lists the steps at which a run was resumed."""
    path = workdir / RESUMES_FILE
    return read_json(path, [int]) if path.is_file() else []


def note_resume(workdir: pathlib.Path, step: int) -> None:
    """Adds a step to `resumed_at` at once, because a run may be killed before its next checkpoint."""
    if jax.process_index() == 0:
        write_json(workdir / RESUMES_FILE, [*resumed_at(workdir), step])


def sessions(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Lists a run's sessions: `step`, after which each began, and the values of `environment`; [] if unknown."""
    path = workdir / ENVIRONMENT_FILE
    return read_json(path, SESSIONS) if path.is_file() else []


def note_session(workdir: pathlib.Path, step: int, environment: dict[str, Any]) -> None:
    """Adds to `sessions`, unless the run goes on as before. It drops sessions whose steps are computed again now."""
    if jax.process_index() == 0:
        before = [session for session in sessions(workdir) if session["step"] < step]
        if not before or before[-1] != {**environment, "step": before[-1]["step"]}:
            write_json(workdir / ENVIRONMENT_FILE, [*before, {"step": step, **environment}])


def read_json(path: pathlib.Path, form: Any) -> Any:
    """Reads the value in a file of a run directory.

    A form is a type, [form of all items], {key: form of its value} (other keys may be there), or (form, None) for a
    value that may be null.

    Raises:
      RunError: the file cannot be read, or its value has another form.
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
    atomic.write(path, (to_json(value, indent=2) + "\n").encode())


def to_json(value: Any, indent: int | None = None) -> str:
    """Makes a JSON text. A number that is not finite becomes null, because JSON has none."""

    def finite(value: Any) -> Any:
        match value:
            case float():
                return value if math.isfinite(value) else None
            case dict():
                return {name: finite(inner) for name, inner in value.items()}
            case list() | tuple():
                return [finite(item) for item in value]
        return value

    return json.dumps(finite(value), indent=indent, allow_nan=False)

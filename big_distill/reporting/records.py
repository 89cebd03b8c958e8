"""Run directories as a page needs them: whatever can be read of them, and a line about each thing that cannot."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from big_distill import workdir as workdirs
from big_distill.checkpoints import saved_steps
from big_distill.config import Config, ModelConfig, fingerprint
from big_distill.errors import RunError, printable
from big_distill.metrics import METRICS_FILE, read_metrics

_PACKED = [
    {
        "format": str,
        "path": str,
        "precision": (str, None),
        "split": str,
        "bytes": int,
        "accuracy": (float, None),
        "agreement": (float, None),
        "latency_ms": float,
    }
]


_MOST_STEPS = 1 << 53  # every integer up to here is a float, too


@dataclasses.dataclass(frozen=True)
class Record:
    """A run directory.

    status: 'finished', 'running', 'stopped' (before its end), 'not begun', 'empty' (no run at all) or 'damaged'.
    step: of its last checkpoint, or of the last line of its metrics if that is later.
    summary: of a finished run, as in summary.json.
    metrics: the lines of metrics.jsonl.
    packed: the rows of pack.json; None without one.
    sessions: of environment.json; () if it was not recorded.
    teacher, init: the runs inside it.
    problems: a line about each thing that is damaged or missing.
    """

    workdir: pathlib.Path
    status: str
    step: int = 0
    config: Config | None = None
    summary: dict[str, Any] | None = None
    metrics: tuple[dict[str, Any], ...] = ()
    packed: tuple[dict[str, Any], ...] | None = None
    sessions: tuple[dict[str, Any], ...] = ()
    teacher: Record | None = None
    init: Record | None = None
    problems: tuple[str, ...] = ()

    @property
    def readable(self) -> bool:
        """Whether there is anything to show."""
        inner = any(run.readable for run in (self.teacher, self.init) if run)
        return bool(self.config or self.summary or self.metrics or inner)

    @property
    def fingerprint(self) -> str | None:
        """Of its config."""
        return fingerprint(self.config) if self.config else None

    def score(self, name: str) -> float | None:
        """Of the finished student on the test split; None if it was not measured."""
        summary = self.summary or {}
        return finite(summary.get("student", {}).get(name) if name == "accuracy" else summary.get(name))

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, where it was logged and is finite."""
        pairs = ((finite(line["step"]), finite(line.get(name))) for line in self.metrics)
        found = [
            (step, value) for step, value in pairs if step is not None and 0 < step <= _MOST_STEPS and value is not None
        ]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return np.array(steps, np.float64), np.array(values, np.float64)


def read(workdir: pathlib.Path) -> Record:
    """Reads a run directory, whatever state it is in; changes nothing in it and opens no data."""
    problems: list[str] = []

    def attempt(name: str, reader: Callable[[], Any]) -> Any:
        try:
            return reader() if (workdir / name).exists() else None
        except RunError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(printable(f"{workdir / name} cannot be read: {error.strerror}"))
        return None

    if not workdir.is_dir():
        return Record(workdir, "empty", problems=(printable(f"{workdir} is not a directory"),))
    config = attempt(workdirs.CONFIG_FILE, lambda: workdirs.read_config(workdir))
    summary = attempt(workdirs.SUMMARY_FILE, lambda: workdirs.read_summary(workdir))
    metrics = attempt(METRICS_FILE, lambda: read_metrics(workdir)) or []
    packed = attempt(workdirs.PACK_FILE, lambda: workdirs.read_json(workdir / workdirs.PACK_FILE, _PACKED))
    sessions = attempt(workdirs.ENVIRONMENT_FILE, lambda: workdirs.sessions(workdir)) or []
    damaged = bool(problems)
    inner = {
        name: read(workdir / name) for name in (workdirs.TEACHER_DIR, workdirs.INIT_DIR) if (workdir / name).is_dir()
    }
    step = max([*saved_steps(workdir), *(line["step"] for line in metrics)], default=0)
    if workdirs.holder(workdir):
        status = "running"
    elif damaged:
        status = "damaged"
    elif summary:
        status = "finished"
    elif step:
        status = "stopped"
    else:
        status = "not begun" if config or inner else "empty"
    if status == "empty":
        problems.append(printable(f"{workdir} holds no run: it has no {workdirs.CONFIG_FILE}"))
    return Record(
        workdir=workdir,
        status=status,
        step=step,
        config=config,
        summary=summary,
        metrics=tuple(metrics),
        packed=None if packed is None else tuple(row for row in packed if _drawable(row)),
        sessions=tuple(sessions),
        teacher=inner.get(workdirs.TEACHER_DIR),
        init=inner.get(workdirs.INIT_DIR),
        problems=(*problems, *(line for run in inner.values() for line in run.problems)),
    )


def read_all(paths: Sequence[pathlib.Path]) -> list[Record]:
    """Each directory once.

    Raises:
      RunError: none of them holds anything to show.
    """
    once: dict[pathlib.Path, pathlib.Path] = {}
    for path in paths:
        once.setdefault(path.resolve(), path)
    records = [read(path) for path in once.values()]
    if not any(record.readable for record in records):
        raise RunError(f"no run to report on: {'; '.join(line for record in records for line in record.problems)}")
    return records


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer that no float holds
        return None


def _drawable(row: dict[str, Any]) -> bool:
    return all((finite(row[key]) or 0) > 0 for key in ("bytes", "latency_ms"))


def architecture(model: ModelConfig) -> str:
    """A model in words: its name and the fields that are not the schema's defaults, such as 'cnn, features 16-32'."""
    parts = [model.name or "unknown"]
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name != "name" and value != field.default:
            shown = "-".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
            parts.append(f"{field.name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def teachers_name(record: Record) -> str | None:
    """What the teacher of a run is, in words; None without one."""
    config = record.config
    if config is None:
        return "unknown" if record.summary and record.summary.get("teacher") else None
    if config.teacher.path:
        names = []
        for path in config.teacher.path.split(","):
            architectures = _model_at(pathlib.Path(path.strip()))
            names.append(architectures or pathlib.PurePath(path.strip()).name)
        return " + ".join(names)
    return architecture(config.teacher.config.student) if config.teacher.config else None


def _model_at(path: pathlib.Path) -> str | None:
    """Of a run directory, if there is one."""
    try:
        return architecture(workdirs.read_config(path).student)
    except RunError:
        return None


def runs_of(record: Record) -> Iterator[tuple[str, Record]]:
    """The run and those inside it: ('student', run), ('teacher', ...), ("student's init", ...)."""
    whose = "student" if record.teacher or (record.config and teachers_name(record)) else "network"
    yield whose, record
    for name, inner in (("teacher", record.teacher), ("init", record.init)):
        if inner:
            for deeper, run in runs_of(inner):
                yield name if run is inner else f"{name}'s {deeper}", run

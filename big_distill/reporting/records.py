"""Run directories as a page needs them: whatever can be read of them, and a line about each thing that cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import reprlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from big_distill import teacher
from big_distill.config import Config, ModelConfig, fingerprint
from big_distill.errors import RunError, printable
from big_distill.run_dir import layout
from big_distill.run_dir.checkpoints import saved_steps
from big_distill.run_dir.metrics import METRICS_FILE, read_metrics

SPEED, LOSS = "train/images_per_second", "train/loss"
_TRAINING = {LOSS, SPEED, "train/kl", "train/agreement"}
_EVALUATION = ("/accuracy", "/kl", "/agreement")
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


_MAX_EXACT_INT = 1 << 53  # every integer up to here is a float, too
_MAX_METRIC = float(np.finfo(np.float32).max)  # of what is computed in float32
_MOST_POINTS = 200
_KL_ROUNDING = 1e-3  # a KL may be as far below 0


@dataclasses.dataclass(frozen=True)
class Record:
    """A run directory.

    status: as `workdir.status` has it, or 'damaged' (one of its files), 'empty' (no run at all) or 'unreadable' (the
      directory itself).
    step: of its last checkpoint, or of the last line of its metrics if that is later.
    summary: of a finished run, as in summary.json.
    metrics: the lines of metrics.jsonl.
    packed: the rows of pack.json that can be drawn, none of a damaged one; None without one.
    sessions: of environment.json; () if it was not recorded.
    teacher_model: what its teacher is, in words; None without one.
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
    teacher_model: str | None = None
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

    @property
    def teacher_scores(self) -> dict[str, Any] | None:
        """`accuracy` and `num_params` of the teacher: as the summary has them, or that of the teacher inside it."""
        if self.summary and self.summary.get("teacher"):
            return self.summary["teacher"]
        return self.teacher.summary["student"] if self.teacher and self.teacher.summary else None

    @property
    def last_accuracy(self) -> tuple[float, int, str] | None:
        """The student's accuracy when it was last measured, the step and the split: the test split if it can be."""
        for split in ("test", "validation"):
            steps, values = self.series(f"eval/{split}/accuracy")
            if len(steps):
                return float(values[-1]), int(steps[-1]), split
        return None

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, where it was logged, is finite and can be."""
        pairs = ((finite(line["step"]), finite(line.get(name))) for line in self.metrics)
        found = [
            (step, value)
            for step, value in pairs
            if step is not None and 0 < step <= _MAX_EXACT_INT and value is not None and _can_be(name, value)
        ]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return np.array(steps, np.float64), np.array(values, np.float64)


def read(workdir: pathlib.Path) -> Record:
    """Reads a run directory, whatever state it is in; changes nothing in it and opens no data."""
    try:
        if not workdir.is_dir():
            return Record(workdir, "empty", problems=(printable(f"{workdir} is not a directory"),))
        with os.scandir(workdir):
            (workdir / layout.CONFIG_FILE).exists()
    except OSError as error:
        return Record(workdir, "unreadable", problems=(printable(f"{workdir} cannot be read: {error.strerror}"),))
    problems: list[str] = []

    def attempt(name: str, reader: Callable[[], Any]) -> Any:
        try:
            return reader() if (workdir / name).exists() else None
        except RunError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(printable(f"{workdir / name} cannot be read: {error.strerror}"))
        return None

    config = attempt(layout.CONFIG_FILE, lambda: layout.read_config(workdir))
    summary = attempt(layout.SUMMARY_FILE, lambda: _plausible_summary(workdir))
    metrics = attempt(METRICS_FILE, lambda: read_metrics(workdir)) or []
    is_packed = (workdir / layout.PACK_FILE).exists()
    packed = attempt(layout.PACK_FILE, lambda: layout.read_json(workdir / layout.PACK_FILE, _PACKED)) or ()
    sessions = attempt(layout.ENVIRONMENT_FILE, lambda: layout.sessions(workdir)) or []
    saved = attempt(layout.CHECKPOINTS_DIR, lambda: saved_steps(workdir)) or []
    damaged = bool(problems)
    problems += _contradictions(workdir, config, summary, metrics, packed)
    inner = {name: read(workdir / name) for name in (layout.TEACHER_DIR, layout.INIT_DIR) if (workdir / name).is_dir()}
    step = max([*saved, *(line["step"] for line in metrics if 0 < line["step"] <= _MAX_EXACT_INT)], default=0)
    held = None
    with contextlib.suppress(OSError):
        held = layout.holder(workdir)
    if damaged and not held:
        status = "damaged"
    elif held or summary or step or config or inner:
        status = layout.status(held=bool(held), finished=bool(summary), begun=step > 0)
    else:
        status = "empty"
    if status == "empty":
        problems.append(printable(f"{workdir} holds no run: it has no {layout.CONFIG_FILE}"))
    return Record(
        workdir=workdir,
        status=status,
        step=step,
        config=config,
        summary=summary,
        metrics=tuple(metrics),
        packed=tuple(row for row in packed if _drawable(row)) if is_packed else None,
        sessions=tuple(sessions),
        teacher_model=_teacher_model(workdir, config, summary),
        teacher=inner.get(layout.TEACHER_DIR),
        init=inner.get(layout.INIT_DIR),
        problems=(*problems, *(line for run in inner.values() for line in run.problems)),
    )


def read_all(paths: Sequence[pathlib.Path]) -> list[Record]:
    """Each directory once.

    Raises:
      RunError: none of them holds anything to show.
    """
    once: dict[pathlib.Path, pathlib.Path] = {}
    for path in paths:
        once.setdefault(pathlib.Path(os.path.realpath(path)), path)
    records = [read(path) for path in once.values()]
    if not any(record.readable for record in records):
        raise RunError(f"no run to report on: {'; '.join(line for record in records for line in record.problems)}")
    return records


def drawn_metrics(record: Record) -> list[str]:
    """Of a run: the losses, rates and speeds that it logged."""
    names = dict.fromkeys(name for line in record.metrics for name in line)
    return [n for n in names if n in _TRAINING or (n.startswith("eval/") and n.endswith(_EVALUATION))]


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most about 200 points of a curve, evenly spread over the logarithm of x, with the first and the last.

    Args:
      x: [N], ascending.
      y: [N].
    """
    if len(x) <= _MOST_POINTS:
        return x, y
    at = np.geomspace(max(x[0], 1), x[-1], _MOST_POINTS)
    kept = np.unique(np.concatenate([[0], np.searchsorted(x, at).clip(0, len(x) - 1), [len(x) - 1]]))
    return x[kept], y[kept]


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer that no float holds
        return None


def _plausible_summary(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Raises RunError if a number in it is none that can be."""
    summary = layout.written_summary(workdir)
    if summary is None:
        return None
    rates = {f"{who}.accuracy": (summary[who] or {}).get("accuracy") for who in ("student", "teacher")}
    rates["agreement"] = summary["agreement"]
    amounts = {f"{who}.num_params": (summary[who] or {}).get("num_params") for who in ("student", "teacher")}
    amounts |= {name: summary[name] for name in ("steps", "kl", "images_per_second", "wall_seconds")}
    wrong = [name for name, value in rates.items() if not _is_rate(value)]
    for name, value in amounts.items():
        least = -_KL_ROUNDING if name == "kl" else 0
        if value is not None and not _is_nan(value) and not least <= value <= _MAX_EXACT_INT:
            wrong.append(name)
    if wrong:
        path, values = workdir / layout.SUMMARY_FILE, rates | amounts
        found = ", ".join(f"{name} is {reprlib.repr(values[name])}" for name in wrong)
        raise RunError(f"{path} is damaged: its {found}, which cannot be")
    return summary


def _can_be(name: str, value: float) -> bool:
    """Of a metric: rates are from 0 to 1, a KL not below 0."""
    match name.rpartition("/")[2]:
        case "accuracy" | "agreement":
            return 0 <= value <= 1
        case "kl":
            return -_KL_ROUNDING <= value <= _MAX_METRIC
    return abs(value) <= _MAX_METRIC


def _is_rate(value: Any) -> bool:
    return value is None or _is_nan(value) or 0 <= value <= 1


def _is_nan(value: float) -> bool:
    """Of an integer that no float holds, too."""
    return isinstance(value, float) and math.isnan(value)


def _contradictions(
    workdir: pathlib.Path,
    config: Config | None,
    summary: dict[str, Any] | None,
    metrics: Sequence[dict[str, Any]],
    packed: Sequence[dict[str, Any]],
) -> list[str]:
    """Lines on files that can be read, and do not belong together or hold what cannot be."""
    lines = []
    if summary:
        if not (workdir / layout.WEIGHTS_FILE).is_file():
            lines.append(f"{workdir} has no {layout.WEIGHTS_FILE}: its weights are missing; its numbers are shown")
        theirs = summary.get("config_fingerprint")
        if config and theirs and theirs != fingerprint(config):
            file = workdir / layout.SUMMARY_FILE
            lines.append(f"{file} is not of this config: it has fingerprint {theirs}, the config {fingerprint(config)}")
        if config and summary["steps"] > config.total_steps:
            file = workdir / layout.SUMMARY_FILE
            lines.append(f"{file} is not of this config: it says {summary['steps']:,} of {config.total_steps:,} steps")
    wrong = {
        f"{name} of {value}"
        for line in metrics
        for name in line
        if (value := finite(line[name])) is not None and not _can_be(name, value)
    }
    if wrong:
        lines.append(f"{workdir / METRICS_FILE}: left out what cannot be, such as {min(wrong)}")
    if dropped := sum(not _drawable(row) for row in packed):
        what = "bytes and latency_ms are above 0, accuracy and agreement from 0 to 1"
        lines.append(f"{workdir / layout.PACK_FILE}: {dropped} of {len(packed)} rows left out: {what}")
    for row in packed:
        file = workdir / pathlib.PurePath(row["path"]).name
        with contextlib.suppress(OSError, ValueError):
            if (size := file.stat().st_size) != row["bytes"]:
                told = f"{workdir / layout.PACK_FILE}: bytes is {row['bytes']:,} of {file.name}"
                lines.append(f"{told}, which has {size:,}")
    return [printable(line) for line in lines]


def _drawable(row: dict[str, Any]) -> bool:
    costs = [finite(row[key]) or 0 for key in ("bytes", "latency_ms")]
    return all(0 < cost <= _MAX_EXACT_INT for cost in costs) and all(
        _is_rate(row[key]) for key in ("accuracy", "agreement")
    )


def architecture(model: ModelConfig) -> str:
    """A model in words: its name and the fields that are not the schema's defaults, such as 'cnn, features 16-32'."""
    parts = [model.name or "unknown"]
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name != "name" and value != field.default:
            shown = "-".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
            parts.append(f"{field.name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def _teacher_model(workdir: pathlib.Path, config: Config | None, summary: dict[str, Any] | None) -> str | None:
    """What the teacher of a run is: its architecture if it is in a run directory, else the name of its file."""
    if config is None:
        return "unknown" if summary and summary.get("teacher") else None
    if config.teacher.config:
        return architecture(config.teacher.config.student)
    names = []
    for path in teacher.paths_of(config, workdir):
        name = pathlib.PurePath(path).name
        with contextlib.suppress(RunError):
            name = architecture(layout.read_config(pathlib.Path(path)).student)
        names.append(name)
    return " + ".join(names) or None


def runs_of(record: Record) -> Iterator[tuple[str, Record]]:
    """The run and those inside it: ('student', run), ('teacher', ...), ("student's init", ...)."""
    whose = "student" if record.teacher or record.teacher_model else "network"
    yield whose, record
    for name, inner in (("teacher", record.teacher), ("init", record.init)):
        if inner:
            for deeper, run in runs_of(inner):
                yield name if run is inner else f"{name}'s {deeper}", run

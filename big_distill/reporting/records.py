"""Reads run directories for a page: all that can be read of them, and a line about each thing that cannot."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from big_distill import teacher, weights
from big_distill.config import Config, ModelConfig
from big_distill.errors import BigDistillError, RunError, printable
from big_distill.reporting.fields import result_fields
from big_distill.run_dir import layout, lock
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
_READERS: dict[str, Callable[[pathlib.Path], Any]] = {
    layout.CONFIG_FILE: layout.read_config,
    layout.SUMMARY_FILE: layout.written_summary,
    METRICS_FILE: read_metrics,
    layout.PACK_FILE: lambda workdir: layout.read_json(workdir / layout.PACK_FILE, _PACKED),
    layout.ENVIRONMENT_FILE: layout.sessions,
    layout.CHECKPOINTS_DIR: saved_steps,
}
_MOST_POINTS = 200


@dataclasses.dataclass(frozen=True)
class Record:
    """Holds what was read of a run directory. Numbers of its files that are not finite are None.

    status: that of `lock.status`, or 'damaged' (one of its files), 'empty' (no run at all) or 'unreadable' (the
      directory itself).
    step: that of its last checkpoint, or that of the last line of its metrics if it is later.
    summary: the values of summary.json.
    metrics: the lines of metrics.jsonl.
    packed: the rows of pack.json, () if it is damaged; None without one.
    sessions: the items of environment.json; () if it was not recorded.
    teacher, init: the runs inside it.
    problems: a line about each thing that is damaged or missing.
    """

    workdir: pathlib.Path
    status: str
    step: int = 0
    config: Config | None = None
    summary: dict[str, Any] | None = None
    metrics: Sequence[dict[str, Any]] = ()
    packed: Sequence[dict[str, Any]] | None = None
    sessions: Sequence[dict[str, Any]] = ()
    teacher: Record | None = None
    init: Record | None = None
    problems: tuple[str, ...] = ()

    @property
    def readable(self) -> bool:
        """Returns True if there is anything to show."""
        inner = any(run.readable for run in (self.teacher, self.init) if run)
        return bool(self.config or self.summary or self.metrics or inner)

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """Returns the fields that may set its results apart from others' (see `result_fields`); {} without a config."""
        return result_fields(self.config) if self.config else {}

    def score(self, name: str) -> float | None:
        """Returns a score of the finished student on the test split; None if it was not measured."""
        summary = self.summary or {}
        return summary.get("student", {}).get(name) if name == "accuracy" else summary.get(name)

    @property
    def teacher_scores(self) -> dict[str, Any] | None:
        """Returns the teacher's `accuracy` and `num_params`, from the summary or from that of the teacher inside."""
        if self.summary and self.summary["teacher"]:
            return self.summary["teacher"]
        return self.teacher.summary["student"] if self.teacher and self.teacher.summary else None

    @functools.cached_property
    def teacher_model(self) -> str | None:
        """Names the teacher: its architecture if it is in a run directory, else the name of its file."""
        if self.config is None:
            return "unknown" if self.summary and self.summary["teacher"] else None
        if self.config.teacher.config:
            return architecture(self.config.teacher.config.student)
        names = []
        for path in teacher.paths_of(self.config, self.workdir):
            name = pathlib.PurePath(path).name
            with contextlib.suppress(RunError):
                name = architecture(layout.read_config(pathlib.Path(path)).student)
            names.append(name)
        return " + ".join(names) or None

    @property
    def last_accuracy(self) -> dict[str, Any] | None:
        """Returns the student's `accuracy` when last measured, with `step` and `split`: the test split if possible."""
        for split in ("test", "validation"):
            steps, values = self.series(f"eval/{split}/accuracy")
            if len(steps):
                return {"accuracy": float(values[-1]), "step": int(steps[-1]), "split": split}
        return None

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps and values of a metric, where it was logged and is a number."""
        points = [(line["step"], line[name]) for line in self.metrics if isinstance(line.get(name), int | float)]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps, np.float64), np.array(values, np.float64)


def read(workdir: pathlib.Path) -> Record:
    """Reads a run directory in any state. Changes nothing in it and opens no data."""
    try:
        if not workdir.is_dir():
            return Record(workdir, "empty", problems=(printable(f"{workdir} is not a directory"),))
        with os.scandir(workdir):
            (workdir / layout.CONFIG_FILE).exists()
    except OSError as error:
        return Record(workdir, "unreadable", problems=(printable(f"{workdir} cannot be read: {error.strerror}"),))
    read_by = {name: functools.partial(reader, workdir) for name, reader in _READERS.items()}
    values, lines = zip(*(attempt(workdir / name, reader) for name, reader in read_by.items()), strict=True)
    config, summary, metrics, packed, sessions, saved = known(values)
    problems = [line for line in lines if line]
    damaged = bool(problems)
    problems += map(printable, _mismatches(workdir, config, summary, packed or ()))
    inner = {name: read(workdir / name) for name in (layout.TEACHER_DIR, layout.INIT_DIR) if (workdir / name).is_dir()}
    step = max([*(saved or ()), *(line["step"] for line in metrics or ())], default=0)
    held = None
    with contextlib.suppress(OSError):
        held = lock.holder(workdir)
    if damaged and not held:
        status = "damaged"
    elif held or summary or step or config or inner:
        status = lock.status(held=bool(held), finished=bool(summary), begun=step > 0)
    else:
        status = "empty"
        problems.append(printable(f"{workdir} holds no run: it has no {layout.CONFIG_FILE}"))
    return Record(
        workdir=workdir,
        status=status,
        step=step,
        config=config,
        summary=summary,
        metrics=metrics or (),
        packed=packed or () if (workdir / layout.PACK_FILE).exists() else None,
        sessions=sessions or (),
        teacher=inner.get(layout.TEACHER_DIR),
        init=inner.get(layout.INIT_DIR),
        problems=(*problems, *(line for run in inner.values() for line in run.problems)),
    )


def attempt(path: pathlib.Path, reader: Callable[[], Any]) -> tuple[Any, str | None]:
    """Reads something of a run directory. Returns its value, None if missing or damaged, and a line on the damage."""
    try:
        return (reader() if path.exists() else None), None
    except BigDistillError as error:
        return None, str(error)
    except OSError as error:
        return None, printable(f"{path} cannot be read: {error.strerror}")


def check_weights(workdir: pathlib.Path, student: weights.Network, summary: Mapping[str, Any] | None) -> None:
    """Raises RunError if a student is not the one that its run's summary is about."""
    if summary and weights.sha256(student.variables["params"]) != summary["params_sha256"]:
        file = workdir / layout.WEIGHTS_FILE
        raise RunError(f"{file} does not hold the weights that {layout.SUMMARY_FILE} has the hash of")


def read_all(paths: Sequence[pathlib.Path]) -> list[Record]:
    """Reads each directory once. Raises RunError if none of them holds anything to show."""
    once: dict[pathlib.Path, pathlib.Path] = {}
    for path in paths:
        once.setdefault(pathlib.Path(os.path.realpath(path)), path)
    records = [read(path) for path in once.values()]
    if not any(record.readable for record in records):
        raise RunError(f"no run to report on: {'; '.join(line for record in records for line in record.problems)}")
    return records


def drawn_metrics(record: Record) -> list[str]:
    """Lists the losses, rates and speeds that a run logged."""
    names = dict.fromkeys(name for line in record.metrics for name in line)
    return [n for n in names if n in _TRAINING or (n.startswith("eval/") and n.endswith(_EVALUATION))]


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Thins a curve to about 200 points, evenly over the logarithm of the ascending x. Keeps the first and the last."""
    if len(x) <= _MOST_POINTS:
        return x, y
    at = np.geomspace(x[0], x[-1], _MOST_POINTS)
    kept = np.unique(np.concatenate([[0], np.searchsorted(x, at).clip(0, len(x) - 1), [len(x) - 1]]))
    return x[kept], y[kept]


def known(value: Any) -> Any:
    """Replaces each number in a JSON value that is not finite, such as a score of no images, by None."""
    if isinstance(value, dict):
        return {key: known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mismatches(
    workdir: pathlib.Path, config: Config | None, summary: dict[str, Any] | None, packed: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """Yields lines on files that can be read but do not belong together."""
    if summary and not (workdir / layout.WEIGHTS_FILE).is_file():
        yield f"{workdir} has no {layout.WEIGHTS_FILE}: its weights are missing; its numbers are shown"
    trained = summary and summary.get("config_fingerprint")
    if config and trained:
        begun, problem = attempt(workdir / layout.CONFIG_FILE, functools.partial(layout.read_fingerprint, workdir))
        if problem:
            yield problem
        elif trained != begun:
            file = workdir / layout.SUMMARY_FILE
            yield f"{file} is not of this config: it has fingerprint {trained}, the config {begun}"
    for row in packed:
        file = workdir / pathlib.PurePath(row["path"]).name
        if file.is_file() and (size := file.stat().st_size) != row["bytes"]:
            yield f"{workdir / layout.PACK_FILE}: bytes is {row['bytes']:,} of {file.name}, which has {size:,}"


def architecture(model: ModelConfig) -> str:
    """Says a model in words: its name and the fields that are no defaults, such as 'cnn, features 16-32'."""
    parts = [model.name or "unknown"]
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.name != "name" and value != field.default:
            shown = "-".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
            parts.append(f"{field.name.replace('_', ' ')} {shown}")
    return ", ".join(parts)


def runs_of(record: Record) -> Iterator[tuple[str, Record]]:
    """Yields the run and those inside it: ('student', run), ('teacher', ...), ("teacher's init", ...)."""
    whose = "student" if record.teacher or record.teacher_model else "network"
    yield whose, record
    for name, inner in (("teacher", record.teacher), ("init", record.init)):
        if inner:
            for deeper, run in runs_of(inner):
                yield name if run is inner else f"{name}'s {deeper}", run

"""What a page says, as plain values: report.json.

Rates are fractions, times are seconds unless a key says `_ms`, what is not known is null. The keys:

* `big_distill_report`: 1, the version of these keys; `big_distill`: the version that wrote it.
* `runs`: for each `name`, `workdir`, `status`, `step`, `total_steps`, `problems` (lines), `notes` and `warnings`
  (lines on what there was not to compare, and on what could not be), `packed` (whether it has pack.json; null if it is
  not finished), `student` and `teacher` (`model`, `accuracy` on the test split, `num_params`; null without a teacher;
  of a student that is not finished also `last`: its `accuracy` when it was last measured, and the `step` and `split`),
  `agreement`, `kl` (nats), `epochs`, `images_per_second`, `wall_seconds`, `fingerprint`, `changed` (the fields of the
  config that have not the schema's defaults), `config`, `sessions` (of environment.json), `curves` (by network and
  metric `steps` and `values`, at most about 200), `throughput` (by network `median_images_per_second` of what was
  logged, and of the whole run `images_per_second` and `wall_seconds`), `comparison`.
* `comparison` of a run: `split`, `num_examples`, `student` and `teacher` (`accuracy`, `confidence`, `ece`, `bins`: by
  bin of confidence the mean `confidence`, the `accuracy` and the `count`), `classes` (`name`, `num_examples`,
  `student` and `teacher`: how many are right; `lost`: how many only the teacher has right, `won`: only the student;
  `difference` of the accuracies; `p_value` and `significant`, see `comparison.ClassScore`), `agreement`, `examples`
  (`lost`, `won`, and without labels `differ`, where they disagree: `truth`, null without labels, and [class,
  probability] of each network's likeliest three).
* `sweep`: `field` (null where no number joins points: means over seeds), `along` (numbers that go with it in these
  runs), `implied` (fields that differ from line to line, too, and that those in the labels tell), `repeated`
  (directories left out, whose fields and seeds another run has), and `lines`: `label`, and `points`: `x`,
  `num_runs`: of how many seeds, `accuracy` and `agreement` (`mean`, `least` and `most` of the `num_runs` in which it
  was measured; null if it was in none).
* `packed`: for each data set and split `dataset`, `split`, `files` (the rows of pack.json with `number`, `run`,
  `file`: the name in `path`, `on_bytes_front`, `on_latency_front`: among the files measured on the same `machine`)
  and `teachers` (`name`, `accuracy`, `bytes`: in float32, 4 a parameter).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import big_distill
from big_distill.config import Config, leaves, to_dict
from big_distill.errors import printable
from big_distill.reporting import pareto
from big_distill.reporting.comparison import Answers, Comparison, Example
from big_distill.reporting.fields import epochs_of
from big_distill.reporting.records import SPEED, Record, architecture, drawn_metrics, finite, runs_of, thinned
from big_distill.reporting.sweep import Sweep

_MARK = "big_distill_report"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory with its name on the page, and what was found by running it.

    notes: a line about each thing that there was not to compare.
    warnings: a line about each thing that could not be compared, or is not what the run says.
    """

    name: str
    record: Record
    comparison: Comparison | None = None
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


def document(runs: Sequence[Run], sweep: Sweep | None) -> dict[str, Any]:
    """All that a page says."""
    values = {
        _MARK: 1,
        "big_distill": big_distill.__version__,
        "runs": [_run(run) for run in runs],
        "sweep": sweep and _sweep(sweep),
        "packed": _packed(runs),
    }
    return _plain(values)


def _plain(value: Any) -> Any:
    """As JSON has it: what is not finite, in a damaged file, is not known."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _run(run: Run) -> dict[str, Any]:
    record = run.record
    config, summary = record.config, record.summary or {}
    teacher = record.teacher_scores
    last = None if record.summary else record.last_accuracy
    student = {
        "accuracy": record.score("accuracy"),
        "num_params": summary.get("student", {}).get("num_params"),
        "last": last and dict(zip(("accuracy", "step", "split"), last, strict=True)),
    }
    return {
        "name": run.name,
        "workdir": str(record.workdir),
        "status": record.status,
        "step": summary.get("steps", record.step),
        "total_steps": config.total_steps if config else None,
        "problems": list(record.problems),
        "notes": list(run.notes),
        "warnings": list(run.warnings),
        "packed": record.packed is not None if record.summary else None,
        "student": {"model": architecture(config.student) if config else None, **student},
        "teacher": (
            {
                "model": record.teacher_model,
                "accuracy": finite(teacher["accuracy"]) if teacher else None,
                "num_params": teacher["num_params"] if teacher else None,
            }
            if record.teacher_model or teacher
            else None
        ),
        "agreement": record.score("agreement"),
        "kl": record.score("kl"),
        "epochs": epochs_of(config) if config else None,
        "images_per_second": finite(summary.get("images_per_second")),
        "wall_seconds": finite(summary.get("wall_seconds")),
        "fingerprint": record.fingerprint,
        "changed": changed(config) if config else {},
        "config": to_dict(config) if config else None,
        "sessions": list(record.sessions),
        "curves": {who: _curves(inner) for who, inner in runs_of(record)},
        "throughput": {
            who: _throughput(inner, speeds) for who, inner in runs_of(record) if len(speeds := inner.series(SPEED)[1])
        },
        "comparison": run.comparison and _comparison(run.comparison),
    }


def changed(config: Config) -> dict[str, Any]:
    """The fields that have not the schema's defaults, by dotted name."""
    found = {
        name: value
        for kind in ("maths", "numerics", "cosmetic")
        for name, value, default in leaves(config, kind)
        if value != default
    }
    return {"total_epochs": config.total_epochs, **found} if config.total_epochs else found


def _curves(record: Record) -> dict[str, Any]:
    found = {}
    for name in drawn_metrics(record):
        steps, values = thinned(*record.series(name))
        found[name] = {"steps": steps.astype(int).tolist(), "values": values.tolist()}
    return found


def _throughput(record: Record, speeds: np.ndarray) -> dict[str, Any]:
    summary = record.summary or {}
    whole = {name: finite(summary.get(name)) for name in ("images_per_second", "wall_seconds")}
    return {"median_images_per_second": float(np.median(speeds)), **whole}


def _comparison(found: Comparison) -> dict[str, Any]:
    return {
        "split": found.split,
        "num_examples": found.num_examples,
        "student": _answers(found.student),
        "teacher": found.teacher and _answers(found.teacher),
        "classes": [{**dataclasses.asdict(score), "difference": score.difference} for score in found.by_class],
        "agreement": found.agreement,
        "examples": {
            kind: [_example(e) for e in examples]
            for kind, examples in (("lost", found.lost), ("won", found.won), ("differ", found.differ))
        },
    }


def _answers(answers: Answers) -> dict[str, Any]:
    if answers.bins is None:
        return {"accuracy": None, "confidence": answers.confidence, "ece": None, "bins": None}
    confidence, correct, count = answers.bins
    bins = [
        {"confidence": c / n, "accuracy": r / n, "count": int(n)}
        if n
        else {"confidence": None, "accuracy": None, "count": 0}
        for c, r, n in zip(confidence.tolist(), correct.tolist(), count.tolist(), strict=True)
    ]
    return {
        "accuracy": answers.accuracy,
        "confidence": answers.confidence,
        "ece": answers.ece,
        "bins": bins,
    }


def _example(example: Example) -> dict[str, Any]:
    return {"truth": example.truth, "student": example.student, "teacher": example.teacher}


def _sweep(sweep: Sweep) -> dict[str, Any]:
    lines = [{"label": k, "points": [dataclasses.asdict(p) for p in points]} for k, points in sweep.lines.items()]
    return {
        "field": sweep.field,
        "along": sweep.along,
        "implied": sweep.implied,
        "repeated": sweep.repeated,
        "lines": lines,
    }


def _packed(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What may be compared: files of the same data set and split."""
    inside = [
        Run(run.name if own is run.record else f"{run.name}, {who}", own, None)
        for run in runs
        for who, own in runs_of(run.record)
    ]
    groups: dict[tuple[str, str], list[tuple[Run, dict[str, Any]]]] = {}
    for run in inside:
        for row in run.record.packed or ():
            groups.setdefault((_dataset(run.record.config), row["split"]), []).append((run, row))
    short = {dataset: _short(dataset) for dataset, _ in groups}
    names = list(short.values())
    return [
        {
            "dataset": short[dataset] if names.count(short[dataset]) == 1 else dataset,
            "split": split,
            "files": _files(rows),
            "teachers": _teachers({run.name: run for run, _ in rows}.values(), split),
        }
        for (dataset, split), rows in groups.items()
    ]


def _dataset(config: Config | None) -> str:
    if config is None:
        return "unknown data"
    source = config.evaluated_on
    return printable(os.path.realpath(source.path) if source.name == "folder" and source.path else source.name)


def _short(dataset: str) -> str:
    """A directory's name instead of its path."""
    return pathlib.PurePath(dataset).name if os.path.isabs(dataset) else dataset


def _files(rows: Sequence[tuple[Run, dict[str, Any]]]) -> list[dict[str, Any]]:
    files = [
        {
            **row,
            "machine": printable(machine) if isinstance(machine := row.get("machine"), str) else None,
            "format": printable(row["format"]),
            "precision": row["precision"] and printable(row["precision"]),
            "number": number,
            "run": run.name,
            "accuracy": finite(row["accuracy"]),
            "file": printable(pathlib.PurePath(row["path"]).name),
        }
        for number, (run, row) in enumerate(rows, 1)
    ]
    on_bytes = _front(files, "bytes")
    on_latency = {number for same in by_machine(files).values() for number in _front(same, "latency_ms")}
    for file in files:
        file["on_bytes_front"] = file["number"] in on_bytes
        file["on_latency_front"] = file["number"] in on_latency
    return files


def by_machine(files: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Packed files whose latencies may be compared; those of an unknown machine are left out."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        if file["machine"]:
            groups.setdefault(file["machine"], []).append(file)
    return groups


def _front(files: Sequence[dict[str, Any]], cost: str) -> set[int]:
    """The numbers of those of which no other is both cheaper and better."""
    measured = [file for file in files if file["accuracy"] is not None]
    best = pareto.front([file[cost] for file in measured], [file["accuracy"] for file in measured])
    return {file["number"] for file, is_best in zip(measured, best, strict=True) if is_best}


def _teachers(runs: Iterable[Run], split: str) -> list[dict[str, Any]]:
    """Those whose accuracy on this split is known: it is their students' test split."""
    found: dict[tuple[float, int], list[str]] = {}
    for run in runs:
        config, teacher = run.record.config, run.record.teacher_scores
        if config and teacher and config.evaluated_on.test == split and finite(teacher["accuracy"]) is not None:
            found.setdefault((teacher["accuracy"], teacher["num_params"]), []).append(run.name)
    return [
        {
            "name": "teacher" if len(found) == 1 else f"teacher of {', '.join(names)}",
            "accuracy": accuracy,
            "bytes": 4 * num_params,
        }
        for (accuracy, num_params), names in found.items()
    ]


def is_document(data: bytes) -> bool:
    """Whether a file is report.json."""
    try:
        return _MARK in json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return False

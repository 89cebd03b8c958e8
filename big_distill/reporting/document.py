"""Gathers the values of a page in the form of JSON: report.json.

Rates are fractions. Times are seconds unless a key says `_ms`. Unknown values are null. These are the keys:

* `big_distill_report`: 1, the version of these keys; `big_distill`: the version that wrote the file.
* `runs`: for each run `name`, `workdir`, `status`, `step`, `total_steps`, `problems` (lines), `notes` (lines on what
  did not exist to compare), `warnings` (lines on what could not be compared), `packed` (true if it has pack.json; null
  if it is not finished), `student` and `teacher` (`model`, `accuracy` on the test split, `num_params`; null without a
  teacher; a student that is not finished also has `last`: its last measured `accuracy`, with `step` and `split`),
  `agreement`, `kl` (nats), `epochs`, `images_per_second`, `wall_seconds`, `fingerprint`, `changed` (the fields of the
  config that differ from the schema's defaults), `config`, `sessions` (of environment.json), `curves` (by network and
  metric `steps` and `values`, at most about 200), `throughput` (by network `median_images_per_second` of the logged
  values, and `images_per_second` and `wall_seconds` of the whole run), `comparison`.
* `comparison` of a run: `split`, `num_examples`, `student` and `teacher` (`accuracy`, `confidence`, `ece`, `bins`: by
  bin of confidence the mean `confidence`, the `accuracy` and the `count`; with labels `accuracy_low` and
  `accuracy_high`, the 95 % interval, `balanced_accuracy`, `macro_f1`, and `classes`: `class`, `examples`, `answers`,
  `right`, `precision`, `recall` and `f1`, see `scoring.per_class`), `confused` (`label`, `answer` and `count`: the
  labels that the student takes most often for another class), `num_contradicted` (labels that are not the teacher's
  answer), `classes` (`name`, `num_examples`,
  `student` and `teacher`: numbers of right answers; `lost`: right by the teacher alone, `won`: by the student alone;
  `difference` of the accuracies; `p_value` and `significant`, see `comparison.ClassScore`), `agreement`, `examples`
  (`lost`, `won`, and without labels `differ`, on which they disagree; `contradicted`: the labels of which the teacher
  is surest that they are another class: `name`, `truth`, null without labels, and each network's likeliest three as
  [class, probability]).
* `sweep`: `field` (null if no number joins points: means over seeds), `along` (numbers that go with it in these
  runs), `implied` (fields that also differ from line to line, but follow from those in the labels), `repeated`
  (directories left out, because another run has the same fields and seeds), and `lines`: `label`, and `points`: `x`,
  `num_runs` (seeds), `accuracy` and `agreement` (`mean`, `least` and `most` over the `num_runs` in which it was
  measured; null if there are none).
* `packed`: for each data set and split `dataset`, `split`, `files` (the rows of pack.json with `number`, `run`,
  `file`: the name in `path`, `on_bytes_front`, `on_latency_front`: among the files measured on the same `machine`)
  and `teachers` (`name`, `accuracy`, `bytes`: in float32, 4 a parameter).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import big_distill
from big_distill.config import Config, fingerprint, leaves, to_dict
from big_distill.errors import printable
from big_distill.reporting import classes
from big_distill.reporting.comparison import Answers, Comparison
from big_distill.reporting.fields import epochs_of
from big_distill.reporting.records import SPEED, Record, architecture, drawn_metrics, known, runs_of, thinned
from big_distill.reporting.sweep import Sweep

_MARK = "big_distill_report"


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """Holds a run directory with its name on the page, and the comparison of its student with its teacher.

    notes: a line about each thing that did not exist to compare.
    warnings: a line about each thing that could not be compared, or is not what the run says.
    """

    name: str
    record: Record
    comparison: Comparison | None = None
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()


def document(runs: Sequence[ReportedRun], sweep: Sweep | None) -> dict[str, Any]:
    """Returns all values of a page, by the keys above."""
    return known(
        {
            _MARK: 1,
            "big_distill": big_distill.__version__,
            "runs": [_run(run) for run in runs],
            "sweep": sweep and _sweep(sweep),
            "packed": _packed(runs),
        }
    )


def _run(run: ReportedRun) -> dict[str, Any]:
    record = run.record
    config, summary, teacher = record.config, record.summary or {}, record.teacher_scores or {}
    return {
        "name": run.name,
        "workdir": str(record.workdir),
        "status": record.status,
        "step": summary.get("steps", record.step),
        "total_steps": config.total_steps if config else None,
        "problems": record.problems,
        "notes": run.notes,
        "warnings": run.warnings,
        "packed": record.packed is not None if record.summary else None,
        "student": {
            "model": architecture(config.student) if config else None,
            "accuracy": record.score("accuracy"),
            "num_params": summary["student"]["num_params"] if summary else None,
            "last": None if record.summary else record.last_accuracy,
        },
        "teacher": {"model": record.teacher_model, **{key: teacher.get(key) for key in ("accuracy", "num_params")}}
        if record.teacher_model or teacher
        else None,
        "agreement": record.score("agreement"),
        "kl": record.score("kl"),
        "epochs": epochs_of(config) if config else None,
        "images_per_second": summary.get("images_per_second"),
        "wall_seconds": summary.get("wall_seconds"),
        "fingerprint": fingerprint(config) if config else None,
        "changed": _changed(config) if config else {},
        "config": to_dict(config) if config else None,
        "sessions": record.sessions,
        "curves": {who: _curves(inner) for who, inner in runs_of(record)},
        "throughput": {
            who: _throughput(inner, speeds) for who, inner in runs_of(record) if len(speeds := inner.series(SPEED)[1])
        },
        "comparison": run.comparison and _comparison(run.comparison),
    }


def _changed(config: Config) -> dict[str, Any]:
    """Returns the fields that differ from the schema's defaults, by dotted name."""
    fields = {
        name: value
        for name, value, default in leaves(config, "maths", "place", "numerics", "cosmetic")
        if value != default
    }
    return {"total_epochs": config.total_epochs, **fields} if config.total_epochs else fields


def _curves(record: Record) -> dict[str, Any]:
    curves = {}
    for name in drawn_metrics(record):
        steps, values = thinned(*record.series(name))
        curves[name] = {"steps": steps.astype(int).tolist(), "values": values.tolist()}
    return curves


def _throughput(record: Record, speeds: np.ndarray) -> dict[str, Any]:
    summary = record.summary or {}
    whole = {name: summary.get(name) for name in ("images_per_second", "wall_seconds")}
    return {"median_images_per_second": float(np.median(speeds)), **whole}


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "split": comparison.split,
        "num_examples": comparison.num_examples,
        "student": _answers(comparison.student, comparison.class_names),
        "teacher": comparison.teacher and _answers(comparison.teacher, comparison.class_names),
        "confused": [dict(zip(("label", "answer", "count"), pair, strict=True)) for pair in comparison.confused],
        "num_contradicted": comparison.num_contradicted,
        "classes": [{**dataclasses.asdict(score), "difference": score.difference} for score in comparison.by_class],
        "agreement": comparison.agreement,
        "examples": {
            kind: [
                {"name": printable(e.name), "truth": e.truth, "student": e.student, "teacher": e.teacher}
                for e in examples
            ]
            for kind, examples in comparison.examples.items()
        },
    }


def _answers(answers: Answers, names: Sequence[str]) -> dict[str, Any]:
    bins = None
    if answers.bins is not None:
        bins = [
            {"confidence": c / n if n else None, "accuracy": r / n if n else None, "count": int(n)}
            for c, r, n in zip(*answers.bins.tolist(), strict=True)
        ]
    rates = {"accuracy": answers.accuracy, "confidence": answers.confidence, "ece": answers.ece, **answers.scores}
    by_class = [] if answers.by_class is None else classes.rows(names, answers.by_class)
    return {**rates, "bins": bins, "classes": by_class}


def _sweep(sweep: Sweep) -> dict[str, Any]:
    values = dataclasses.asdict(sweep)
    return {**values, "lines": [{"label": label, "points": points} for label, points in values["lines"].items()]}


def _packed(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Groups packed files that may be compared: those of one data set and split."""
    groups: dict[tuple[str, str], list[tuple[ReportedRun, dict[str, Any]]]] = {}
    for run in runs:
        for who, record in runs_of(run.record):
            owner = ReportedRun(run.name if record is run.record else f"{run.name}, {who}", record)
            for row in record.packed or ():
                groups.setdefault((_dataset(record.config), row["split"]), []).append((owner, row))
    short = {name: pathlib.PurePath(name).name if os.path.isabs(name) else name for name, _ in groups}
    names = list(short.values())
    return [
        {
            "dataset": short[dataset] if names.count(short[dataset]) == 1 else dataset,
            "split": split,
            "files": _files(rows),
            "teachers": _teachers({owner.name: owner for owner, _ in rows}.values(), split),
        }
        for (dataset, split), rows in groups.items()
    ]


def _dataset(config: Config | None) -> str:
    if config is None:
        return "unknown data"
    source = config.evaluated_on
    return printable(os.path.realpath(source.path) if source.name == "folder" and source.path else source.name)


def _files(rows: Sequence[tuple[ReportedRun, dict[str, Any]]]) -> list[dict[str, Any]]:
    files = [
        {
            **row,
            "machine": row.get("machine"),  # older files lack it
            "number": number,
            "run": owner.name,
            "file": pathlib.PurePath(row["path"]).name,
        }
        for number, (owner, row) in enumerate(rows, 1)
    ]
    on_bytes = front(files, "bytes")
    on_latency = {number for same in by_machine(files).values() for number in front(same, "latency_ms")}
    for file in files:
        file["on_bytes_front"] = file["number"] in on_bytes
        file["on_latency_front"] = file["number"] in on_latency
    return files


def by_machine(files: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Groups packed files whose latencies may be compared. Leaves out those of an unknown machine."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        if file["machine"]:
            groups.setdefault(file["machine"], []).append(file)
    return groups


def front(files: Sequence[dict[str, Any]], cost: str) -> set[int]:
    """Returns the numbers of files on the Pareto front: no other is as good in cost and accuracy and better in one."""
    measured = [(file["number"], file[cost], file["accuracy"]) for file in files if file["accuracy"] is not None]

    def is_beaten(cost: float, accuracy: float) -> bool:
        return any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for _, c, a in measured)

    return {number for number, cost, accuracy in measured if not is_beaten(cost, accuracy)}


def _teachers(runs: Iterable[ReportedRun], split: str) -> list[dict[str, Any]]:
    """Lists the teachers whose accuracy on this split is known, because it is their students' test split."""
    names: dict[tuple[float, int], list[str]] = {}
    for run in runs:
        config, teacher = run.record.config, run.record.teacher_scores
        if config and teacher and config.evaluated_on.test == split and teacher["accuracy"] is not None:
            names.setdefault((teacher["accuracy"], teacher["num_params"]), []).append(run.name)
    return [
        {
            "name": "teacher" if len(names) == 1 else f"teacher of {', '.join(students)}",
            "accuracy": accuracy,
            "bytes": 4 * num_params,
        }
        for (accuracy, num_params), students in names.items()
    ]


def is_document(data: bytes) -> bool:
    """Returns True if a file is report.json."""
    try:
        return _MARK in json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return False

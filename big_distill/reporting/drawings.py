"""Draws the figures of a page: of runs together, of each run, of a sweep and of packed files."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from big_distill.reporting import document, figures
from big_distill.reporting.document import ReportedRun
from big_distill.reporting.figures import Drawing, Line
from big_distill.reporting.records import LOSS, SPEED, Record, drawn_metrics, runs_of
from big_distill.reporting.sweep import Sweep

_MOST_LABELS = 7
_MOST_LINES = 10
_LABELS = {
    "accuracy": "accuracy, %",
    "kl": "KL(teacher || student), nats",
    "agreement": "agreement with the teacher, %",
    "loss": "loss",
}
_STROKES: dict[str, dict[str, Any]] = {  # tell curves of one colour apart
    "validation": {"linestyle": "--"},
    "training batches": {"linestyle": "-", "alpha": 0.65, "linewidth": 0.9},
}


@dataclasses.dataclass(frozen=True)
class RunDrawings:
    """Holds the figures of one run.

    `reliability` has one for each network, 'student' and 'teacher'; `confusion` has the student's matrix, if there is
    one.
    """

    curves: list[Drawing]
    throughput: list[Drawing]
    reliability: dict[str, Drawing]
    confusion: list[Drawing]


@dataclasses.dataclass(frozen=True)
class Drawings:
    """Holds the figures of a page.

    sweep: accuracy and agreement against a field.
    together: the students of several runs.
    runs: the figures of each run.
    packed: the figures of each group of files.
    singly: True if each run's own curves were drawn, even if it has none.
    """

    sweep: list[Drawing]
    together: list[Drawing]
    runs: list[RunDrawings]
    packed: list[list[Drawing]]
    singly: bool

    def all(self) -> Iterator[Drawing]:
        """Yields every figure."""
        yield from itertools.chain(self.sweep, self.together, *self.packed)
        for run in self.runs:
            yield from itertools.chain(run.curves, run.throughput, run.reliability.values(), run.confusion)


def draw(runs: Sequence[ReportedRun], sweep: Sweep | None, packed: Sequence[dict[str, Any]], singly: bool) -> Drawings:
    """Draws the figures of a page: of runs, in its order, and of the groups of files from `document.document`.

    `singly` says whether each run's own curves are drawn.
    """
    numbered = enumerate(tqdm.tqdm(runs, "figures", unit="run", disable=not sys.stderr.isatty()), 1)
    return Drawings(
        sweep=[figure for score in ("accuracy", "agreement") if sweep and (figure := figures.swept(sweep, score))],
        together=_together(runs),
        runs=[
            RunDrawings(
                curves=_curves(index, run) if singly else [],
                throughput=_throughput(index, run) if singly else [],
                reliability=_reliability(index, run),
                confusion=_confusion(index, run),
            )
            for index, run in numbered
        ],
        packed=[_tradeoffs(index, group) for index, group in enumerate(packed, 1)],
        singly=singly,
    )


def _together(runs: Sequence[ReportedRun]) -> list[Drawing]:
    """Draws the students of several runs on one split, if a figure can tell them apart. Prefers the test split."""
    drawings = []
    for metric in ("accuracy", "kl"):
        label = _LABELS[metric]
        for split in ("test", "validation"):
            series = [(run.name, *run.record.series(f"eval/{split}/{metric}")) for run in runs]
            logged = [one for one in series if len(one[1])]
            lines = [Line(*one, colour) for colour, one in enumerate(logged)]
            if 1 < len(lines) <= _MOST_LINES and max(len(line.x) for line in lines) > 1:
                title, name = f"all runs, {split} split: {label}", f"together_{metric}"
                drawings.append(figures.curves(name, title, f"{split}: {label}", lines, percent=metric == "accuracy"))
                break
    return drawings


def _curves(index: int, run: ReportedRun) -> list[Drawing]:
    """Draws accuracy, KL, agreement and loss against steps, of a run and those inside it."""
    logged = [
        (name, _curve(colour, who, record, name))
        for colour, (who, record) in enumerate(runs_of(run.record))
        for name in drawn_metrics(record)
    ]
    reference = (run.record.teacher_scores or {}).get("accuracy")
    return [
        figures.curves(
            f"run{index}_{figure}",
            f"{run.name}: {label} against steps",
            label,
            lines,
            percent=figure in ("accuracy", "agreement"),
            reference=reference if figure == "accuracy" else None,
            steps=np.concatenate([line.x for _, line in logged]),
        )
        for figure, label in _LABELS.items()
        if (lines := [line for name, line in logged if name.endswith(f"/{figure}") and len(line.x)])
    ]


def _curve(colour: int, who: str, record: Record, name: str) -> Line:
    """Makes the line of a run's metric, named by its split. A loss is named by its objective."""
    if name == LOSS:
        what = record.config.objective.name if record.config else "unknown objective"
    else:
        what = "training batches" if name.startswith("train/") else name.split("/")[1]
    steps, values = record.series(name)
    return Line(f"{who}, {what}", steps, values, colour, _STROKES.get(what, {}))


def _throughput(index: int, run: ReportedRun) -> list[Drawing]:
    lines = [Line(who, *record.series(SPEED), colour) for colour, (who, record) in enumerate(runs_of(run.record))]
    lines = [line for line in lines if len(line.x)]
    title = f"{run.name}: images a second against steps"
    return [figures.curves(f"run{index}_speed", title, "images/s", lines, percent=False)] if lines else []


def _reliability(index: int, run: ReportedRun) -> dict[str, Drawing]:
    if run.comparison is None:
        return {}
    networks = {"student": run.comparison.student, "teacher": run.comparison.teacher}
    return {
        who: figures.reliability(
            f"run{index}_reliability_{who}", f"{run.name}: {who}, accuracy against confidence", answers.bins
        )
        for who, answers in networks.items()
        if answers is not None and answers.bins is not None
    }


def _confusion(index: int, run: ReportedRun) -> list[Drawing]:
    if run.comparison is None or run.comparison.confusion is None:
        return []
    title = f"{run.name}: confusion matrix of the student"
    names = run.comparison.class_names
    return [figures.confusion(f"run{index}_confusion", title, run.comparison.confusion, names)]


def _tradeoffs(index: int, group: dict[str, Any]) -> list[Drawing]:
    measured = [file for file in group["files"] if file["accuracy"] is not None]
    if not measured:
        return []
    by_run = 1 < len({file["run"] for file in measured}) <= _MOST_LABELS
    files = [
        {**f, "label": f["run"] if by_run else " ".join(filter(None, (f["format"], f["precision"])))} for f in measured
    ]
    title, teachers = f"of packed files, {group['dataset']} {group['split']}", group["teachers"]
    name, shown = f"packed{index}_bytes", f"accuracy against bytes {title}"
    drawings = [figures.tradeoff(name, shown, "bytes", "bytes", files, teachers)]
    machines = document.by_machine(files)
    for number, (machine, same) in enumerate(machines.items(), 1):
        which, where = (f"{number}", f", {machine}") if len(machines) > 1 else ("", "")
        name, shown = f"packed{index}_latency{which}", f"accuracy against latency {title}{where}"
        axis = f"ms an image, one at a time{where}"
        drawings.append(figures.tradeoff(name, shown, axis, "latency_ms", same, teachers))
    return drawings

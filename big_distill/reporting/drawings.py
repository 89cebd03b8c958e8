"""Which figures a page has: of runs together, of each run, of a sweep and of packed files."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from big_distill.reporting import document, figures
from big_distill.reporting.document import Run
from big_distill.reporting.figures import Drawing, Line
from big_distill.reporting.records import LOSS, SPEED, Record, drawn_metrics, finite, runs_of
from big_distill.reporting.sweep import Sweep

_MOST_LABELS = 7
_MOST_LINES = 10
_STROKES = {"test": 0, "validation": 1, "training batches": 2}


@dataclasses.dataclass(frozen=True)
class RunDrawings:
    """The figures of one run; reliability by network, 'student' and 'teacher'."""

    curves: list[Drawing]
    throughput: list[Drawing]
    reliability: dict[str, Drawing]


@dataclasses.dataclass(frozen=True)
class Drawings:
    """The figures of a page.

    sweep: accuracy and agreement against a field.
    together: the students of several runs.
    runs: of each run.
    packed: of each group of files.
    singly: whether each run's own curves were drawn, even if it has none.
    """

    sweep: list[Drawing]
    together: list[Drawing]
    runs: list[RunDrawings]
    packed: list[list[Drawing]]
    singly: bool

    def all(self) -> Iterator[Drawing]:
        """Every one."""
        yield from itertools.chain(self.sweep, self.together, *self.packed)
        for run in self.runs:
            yield from itertools.chain(run.curves, run.throughput, run.reliability.values())


def draw(runs: Sequence[Run], sweep: Sweep | None, packed: Sequence[dict[str, Any]], singly: bool) -> Drawings:
    """The figures.

    Args:
      runs: in the order of the page.
      sweep: what they make together.
      packed: the groups of files of `document.document`.
      singly: whether each run's own curves are drawn.
    """
    numbered = enumerate(tqdm.tqdm(runs, "figures", unit="run", disable=not sys.stderr.isatty()), 1)
    return Drawings(
        sweep=[figure for score in ("accuracy", "agreement") if sweep and (figure := figures.swept(sweep, score))],
        together=_together(runs),
        runs=[_of_run(index, run, singly) for index, run in numbered],
        packed=[_tradeoffs(index, group) for index, group in enumerate(packed, 1)],
        singly=singly,
    )


def _of_run(index: int, run: Run, singly: bool) -> RunDrawings:
    return RunDrawings(
        curves=_curves(index, run) if singly else [],
        throughput=_throughput(index, run) if singly else [],
        reliability=_reliability(index, run),
    )


def _together(runs: Sequence[Run]) -> list[Drawing]:
    """The students of several runs on one split, the test split if they have it, where a figure can tell them apart."""
    found = []
    for metric, label in (("accuracy", "accuracy, %"), ("kl", "KL(teacher || student), nats")):
        for split in ("test", "validation"):
            series = [(run.name, *run.record.series(f"eval/{split}/{metric}")) for run in runs]
            logged = [(name, steps, values) for name, steps, values in series if len(steps)]
            lines = [Line(name, steps, values, colour) for colour, (name, steps, values) in enumerate(logged)]
            if 1 < len(lines) <= _MOST_LINES and max(len(line.x) for line in lines) > 1:
                title, name = f"all runs, {split} split: {label}", f"together_{metric}"
                found.append(figures.curves(name, title, f"{split}: {label}", lines, percent=metric == "accuracy"))
                break
    return found


def _curves(index: int, run: Run) -> list[Drawing]:
    """Of a run and those inside it: accuracy, KL, agreement and loss against steps."""
    logged = [
        (name, _curve(colour, who, own, name))
        for colour, (who, own) in enumerate(runs_of(run.record))
        for name in drawn_metrics(own)
    ]
    teacher = run.record.teacher_scores or {}
    found = []
    for figure, label in (
        ("accuracy", "accuracy, %"),
        ("kl", "KL(teacher || student), nats"),
        ("agreement", "agreement with the teacher, %"),
        ("loss", "loss"),
    ):
        lines = [line for name, line in logged if name.endswith(f"/{figure}") and len(line.x)]
        if lines:
            drawing = figures.curves(
                f"run{index}_{figure}",
                f"{run.name}: {label} against steps",
                label,
                lines,
                percent=figure in ("accuracy", "agreement"),
                reference=finite(teacher.get("accuracy")) if figure == "accuracy" else None,
                steps=np.concatenate([line.x for _, line in logged]),
            )
            found.append(drawing)
    return found


def _curve(colour: int, who: str, record: Record, name: str) -> Line:
    """A metric of a run; named by its split, a loss by its objective."""
    if name == LOSS:
        what = record.config.objective.name if record.config else "unknown objective"
    else:
        what = "training batches" if name.startswith("train/") else name.split("/")[1]
    steps, values = record.series(name)
    return Line(f"{who}, {what}", steps, values, colour, 0 if name == LOSS else _STROKES.get(what, 0))


def _throughput(index: int, run: Run) -> list[Drawing]:
    lines = [Line(who, *own.series(SPEED), colour) for colour, (who, own) in enumerate(runs_of(run.record))]
    lines = [line for line in lines if len(line.x)]
    title = f"{run.name}: images a second against steps"
    return [figures.curves(f"run{index}_speed", title, "images/s", lines, percent=False)] if lines else []


def _reliability(index: int, run: Run) -> dict[str, Drawing]:
    if run.comparison is None:
        return {}
    networks = (("student", run.comparison.student), ("teacher", run.comparison.teacher))
    return {
        who: figures.reliability(
            f"run{index}_reliability_{who}", f"{run.name}: {who}, accuracy against confidence", answers
        )
        for who, answers in networks
        if answers is not None and answers.bins is not None
    }


def _tradeoffs(index: int, group: dict[str, Any]) -> list[Drawing]:
    files = [file for file in group["files"] if file["accuracy"] is not None]
    if not files:
        return []
    runs = {file["run"] for file in files}
    by_run = 1 < len(runs) <= _MOST_LABELS

    def label(file: dict[str, Any]) -> str:
        return file["run"] if by_run else " ".join(filter(None, (file["format"], file["precision"])))

    title = f"of packed files, {group['dataset']} {group['split']}"
    dots = [figures.Dot(label(f), f["number"], f["bytes"], f["accuracy"], f["on_bytes_front"]) for f in files]
    teachers = [(t["name"], t["bytes"], t["accuracy"]) for t in group["teachers"]]
    found = [figures.tradeoff(f"packed{index}_bytes", f"accuracy against bytes {title}", "bytes", dots, teachers)]
    machines = document.by_machine(files)
    for number, (machine, same) in enumerate(machines.items(), 1):
        which, where = (f"{number}", f", {machine}") if len(machines) > 1 else ("", "")
        dots = [figures.Dot(label(f), f["number"], f["latency_ms"], f["accuracy"], f["on_latency_front"]) for f in same]
        name, axis = f"packed{index}_latency{which}", f"ms an image, one at a time{where}"
        unknown = [(name, None, accuracy) for name, _, accuracy in teachers]
        found.append(figures.tradeoff(name, f"accuracy against latency {title}{where}", axis, dots, unknown))
    return found

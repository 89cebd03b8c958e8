"""Which figures a page has: of runs together, of each run, of a sweep and of packed files."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from big_distill.reporting import document, figures
from big_distill.reporting.document import AGREEMENT, KL, LOSS, SPEED, Run
from big_distill.reporting.figures import Drawing, Line
from big_distill.reporting.records import finite, runs_of
from big_distill.reporting.sweep import Sweep

_MOST_LABELS = 7
_MOST_LINES = 10
_STROKES = {"test": 0, "validation": 1, "training batches": 2}


@dataclasses.dataclass(frozen=True)
class Drawings:
    """The figures of a page.

    sweep: accuracy and agreement against a field.
    together: the students of several runs.
    curves, throughput, reliability: by run.
    pareto: by group of files.
    each: whether each run's own curves were drawn, even if it has none.
    """

    sweep: list[Drawing]
    together: list[Drawing]
    curves: list[list[Drawing]]
    throughput: list[list[Drawing]]
    reliability: list[list[Drawing]]
    pareto: list[list[Drawing]]
    each: bool

    def all(self) -> Iterator[Drawing]:
        """Every one."""
        by_run = itertools.chain(self.curves, self.throughput, self.reliability, self.pareto)
        yield from itertools.chain(self.sweep, self.together, *by_run)


def draw(runs: Sequence[Run], swept: Sweep | None, packed: Sequence[dict[str, Any]], each: bool) -> Drawings:
    """The figures.

    Args:
      runs: in the order of the page.
      swept: what they make together.
      packed: the groups of files of `document.document`.
      each: whether each run's own curves are drawn.
    """
    drawn = [
        (
            _curves(index, run) if each else [],
            _throughput(index, run) if each else [],
            _reliability(index, run),
        )
        for index, run in enumerate(tqdm.tqdm(runs, "figures", unit="run", disable=not sys.stderr.isatty()), 1)
    ]
    return Drawings(
        sweep=[figure for score in ("accuracy", "agreement") if swept and (figure := figures.swept(swept, score))],
        together=_together(runs),
        curves=[curves for curves, _, _ in drawn],
        throughput=[speed for _, speed, _ in drawn],
        reliability=[reliability for _, _, reliability in drawn],
        pareto=[_tradeoffs(index, group) for index, group in enumerate(packed, 1)],
        each=each,
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
    record = run.record
    whole = [
        (colour, who, own, name)
        for colour, (who, own) in enumerate(runs_of(record))
        for name in document.drawn_metrics(own)
    ]

    def lines(kept: Callable[[str], bool]) -> list[Line]:
        found = []
        for colour, who, own, name in whole:
            steps, values = own.series(name)
            if kept(name) and len(steps):
                if name == LOSS:
                    what, stroke = own.config.objective.name if own.config else "unknown objective", 0
                else:
                    what = "training batches" if name.startswith("train/") else name.split("/")[1]
                    stroke = _STROKES.get(what, 0)
                found.append(Line(f"{who}, {what}", steps, values, colour, stroke))
        return found

    steps = [own.series(name)[0] for _, _, own, name in whole]
    teacher = record.teacher_scores or {}
    wanted = (
        ("accuracy", "accuracy, %", lines(lambda n: n.endswith("/accuracy")), True),
        ("kl", "KL(teacher || student), nats", lines(lambda n: n == KL or n.endswith("/kl")), False),
        (
            "agreement",
            "agreement with the teacher, %",
            lines(lambda n: n == AGREEMENT or n.endswith("/agreement")),
            True,
        ),
        ("loss", "loss", lines(lambda n: n == LOSS), False),
    )
    return [
        figures.curves(
            f"run{index}_{name}",
            f"{run.name}: {label} against steps",
            label,
            own,
            percent=is_rate,
            reference=finite(teacher.get("accuracy")) if name == "accuracy" else None,
            steps=np.concatenate(steps),
        )
        for name, label, own, is_rate in wanted
        if own
    ]


def _throughput(index: int, run: Run) -> list[Drawing]:
    lines = [Line(who, *own.series(SPEED), colour) for colour, (who, own) in enumerate(runs_of(run.record))]
    lines = [line for line in lines if len(line.x)]
    title = f"{run.name}: images a second against steps"
    return [figures.curves(f"run{index}_speed", title, "images/s", lines, percent=False)] if lines else []


def _reliability(index: int, run: Run) -> list[Drawing]:
    if run.comparison is None:
        return []
    networks = (("student", run.comparison.student), ("teacher", run.comparison.teacher))
    return [
        figures.reliability(f"run{index}_reliability_{who}", f"{run.name}: {who}, accuracy against confidence", answers)
        for who, answers in networks
        if answers is not None and answers.bins is not None
    ]


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

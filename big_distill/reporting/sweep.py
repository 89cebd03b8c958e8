"""Joins several runs into one figure: test accuracy and agreement against a number in which they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence

from big_distill.errors import printable
from big_distill.reporting.fields import (
    DURATION,
    differing,
    in_words,
    is_number,
    is_seed,
    rank,
    telling_apart,
)
from big_distill.reporting.records import Record

_DURATIONS = (DURATION, "total_steps")
_LONGEST_LABEL = 64


@dataclasses.dataclass(frozen=True)
class Spread:
    """Describes a score over the seeds that have it: their number, its mean, its smallest and its largest value."""

    num_runs: int
    mean: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class Point:
    """Describes runs that differ in their seed alone.

    x: the value of the field; None without one.
    num_runs: their number.
    accuracy, agreement: None if it was not measured.
    """

    x: float | None
    num_runs: int
    accuracy: Spread | None
    agreement: Spread | None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Holds test accuracy and agreement against a field, or over seeds alone.

    field: its dotted name; None if no number joins points.
    along: numbers that make no lines because they go with it in these runs, such as a warm-up with the duration.
    implied: other fields that differ from line to line, but follow from those in the labels.
    repeated: directories left out, because another of the runs has all their fields and seeds.
    lines: points by the other fields that differ, in words, such as 'view.regime=consistent'.
    """

    field: str | None
    along: tuple[str, ...]
    implied: tuple[str, ...]
    repeated: tuple[str, ...]
    lines: dict[str, tuple[Point, ...]]


def sweep(records: Sequence[Record]) -> Sweep | None:
    """Joins the finished runs along a number in which they differ, or over their seeds; None if neither is possible.

    The number is the duration if that joins two points, else the number of most values that does. Without such a
    number, seeds are averaged if two runs differ in them alone.
    """
    once: dict[Hashable, Record] = {}
    repeated = []
    for record in records:
        finished = record.config is not None and record.summary is not None
        if finished and once.setdefault(tuple(record.fields.items()), record) is not record:
            repeated.append(printable(str(record.workdir)))
    runs = list(once.values())
    names = [name for name in differing([run.fields for run in runs]) if not is_seed(name)]
    values = {name: {run.fields.get(name) for run in runs} for name in names}
    numeric = [name for name in names if all(map(is_number, values[name]))]
    for field in (*sorted(numeric, key=lambda name: (name not in _DURATIONS, -len(values[name]))), None):
        along = []
        if field in _DURATIONS:
            along = [name for name in numeric if name != field and _follows(name, field, runs)]
        others = [name for name in names if name != field and name not in along]
        label_fields = telling_apart(others, [run.fields for run in runs], _LONGEST_LABEL)
        lines = _lines(field, label_fields, runs)
        if any(len(points) > 1 for points in lines.values()) if field else len(runs) > len(lines):
            implied = tuple(name for name in others if name not in label_fields)
            return Sweep(field, tuple(along), implied, tuple(repeated), lines)
    return None


def _lines(field: str | None, label_fields: Sequence[str], runs: Sequence[Record]) -> dict[str, tuple[Point, ...]]:
    """Groups points along a field, or one without, by the label of their line, in the order of the labels' values."""
    groups: dict[str, dict[float | None, list[Record]]] = {}
    for run in sorted(runs, key=lambda run: [rank(run.fields.get(name)) for name in label_fields]):
        x = float(run.fields[field]) if field else None
        groups.setdefault(in_words(label_fields, run.fields), {}).setdefault(x, []).append(run)
    return {
        label: tuple(
            Point(x, len(same), _spread("accuracy", same), _spread("agreement", same))
            for x, same in sorted(by_x.items(), key=lambda item: item[0] or 0.0)
        )
        for label, by_x in groups.items()
    }


def _follows(name: str, field: str, runs: Sequence[Record]) -> bool:
    """Returns True if runs that agree in `field` agree in `name`, too."""
    return len({(run.fields[field], run.fields[name]) for run in runs}) == len({run.fields[field] for run in runs})


def _spread(name: str, runs: Sequence[Record]) -> Spread | None:
    values = [value for run in runs if (value := run.score(name)) is not None]
    return Spread(len(values), sum(values) / len(values), min(values), max(values)) if values else None

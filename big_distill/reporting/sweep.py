"""The figure that several runs make: test accuracy and agreement against a number in which they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from big_distill.errors import printable
from big_distill.reporting.fields import (
    DURATION,
    differing,
    in_words,
    is_number,
    is_seed,
    rank,
    result_fields,
    telling_apart,
)
from big_distill.reporting.records import Record

_DURATIONS = (DURATION, "total_steps")
_LONGEST_LABEL = 64
_Run = tuple[dict[str, Any], Record]  # what sets its results apart from others', and the run


@dataclasses.dataclass(frozen=True)
class Spread:
    """A score over the seeds of which it is known: how many, its mean, smallest and largest."""

    num_runs: int
    mean: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class Point:
    """Runs that differ in their seed alone.

    x: the value of the field; None without one.
    num_runs: of how many seeds.
    accuracy, agreement: None where it was not measured.
    """

    x: float | None
    num_runs: int
    accuracy: Spread | None
    agreement: Spread | None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Test accuracy and agreement against a field, or over seeds alone.

    field: dotted name, None if no number joins points; `log`: whether its values span a decade.
    along: numbers that make no lines because they go with it in these runs, such as a warm-up with the duration.
    implied: other fields that differ from line to line, and are not named because those that are tell them.
    lines: by the other fields that differ, in words, such as 'view.regime=consistent'.
    repeated: directories left out, because another of the runs has all their fields and seeds.
    """

    field: str | None
    log: bool
    along: tuple[str, ...]
    implied: tuple[str, ...]
    lines: dict[str, tuple[Point, ...]]
    repeated: tuple[str, ...] = ()


def sweep(records: Sequence[Record]) -> Sweep | None:
    """What the finished runs make: a figure against a number in which they differ, or means over seeds; else None.

    The number is the duration if that joins two points, else the one of most values that does.
    """
    once: dict[Hashable, Record] = {}
    repeated = []
    for record in records:
        if record.config is None or record.summary is None:
            continue
        if once.setdefault(tuple(result_fields(record.config).items()), record) is not record:
            repeated.append(printable(str(record.workdir)))
    runs = [(result_fields(record.config), record) for record in once.values() if record.config]
    names = [name for name in differing([fields for fields, _ in runs]) if not is_seed(name)]
    values = {name: {fields.get(name) for fields, _ in runs} for name in names}
    numeric = [name for name in names if all(map(is_number, values[name]))]
    for field in (*sorted(numeric, key=lambda name: (name not in _DURATIONS, -len(values[name]))), None):
        if found := _against(field, names, numeric, runs):
            return dataclasses.replace(found, repeated=tuple(repeated))
    return None


def _against(field: str | None, names: Sequence[str], numeric: Sequence[str], runs: Sequence[_Run]) -> Sweep | None:
    """The lines of runs against a field, if two points are joined; without a field, if two runs share one.

    Args:
      field: one of `numeric`, or None.
      names: the fields in which runs differ, but for seeds.
      numeric: those of them that are numbers.
      runs: no two of them alike.
    """
    of_runs = [fields for fields, _ in runs]
    along = []
    if field in _DURATIONS:
        along = [name for name in numeric if name != field and _follows(name, field, of_runs)]
    others = [name for name in names if name != field and name not in along]
    told = telling_apart(others, of_runs, _LONGEST_LABEL)
    lines = _lines(field, told, runs)
    if not (any(len(points) > 1 for points in lines.values()) if field else len(runs) > len(lines)):
        return None
    xs = [point.x for points in lines.values() for point in points if point.x is not None]
    return Sweep(
        field=field,
        log=bool(xs) and min(xs) > 0 and max(xs) / min(xs) >= 10,
        along=tuple(along),
        implied=tuple(name for name in others if name not in told),
        lines=lines,
    )


def _lines(field: str | None, told: Sequence[str], runs: Sequence[_Run]) -> dict[str, tuple[Point, ...]]:
    """By what `told` says of them, in the order of its values, the points along a field, or one without."""
    groups: dict[str, dict[float | None, list[Record]]] = {}
    for fields, record in sorted(runs, key=lambda run: [rank(run[0].get(name)) for name in told]):
        x = float(fields[field]) if field else None
        groups.setdefault(in_words(told, fields), {}).setdefault(x, []).append(record)
    return {
        label: tuple(_point(x, same) for x, same in sorted(by_x.items(), key=lambda item: item[0] or 0.0))
        for label, by_x in groups.items()
    }


def _follows(name: str, field: str, runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs that agree in a field agree in this one, too."""
    return len({(own[field], own[name]) for own in runs}) == len({own[field] for own in runs})


def _point(x: float | None, records: Sequence[Record]) -> Point:
    accuracy, agreement = (_spread([record.score(name) for record in records]) for name in ("accuracy", "agreement"))
    return Point(x, len(records), accuracy, agreement)


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(len(known), sum(known) / len(known), min(known), max(known)) if known else None

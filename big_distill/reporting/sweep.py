"""What several runs differ in: their names, and the figure of one quantity against another."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from big_distill.config import Config, leaves
from big_distill.errors import printable
from big_distill.reporting.records import Record, finite
from big_distill.workdir import INIT_DIR, TEACHER_DIR

_DURATION = "total_epochs"
_DURATIONS = (_DURATION, "total_steps")
_LONGEST_LABEL = 64
_LONGEST_NAME = 96
_MOST_NAMED = 4
_Run = tuple[dict[str, Any], Record]  # what sets its results apart from others', and the run


@dataclasses.dataclass(frozen=True)
class Spread:
    """A score over the seeds of which it is known: how many, its mean, smallest and largest."""

    runs: int
    mean: float
    least: float
    most: float


@dataclasses.dataclass(frozen=True)
class Point:
    """Runs that differ in their seed alone.

    x: the value of the field; None without one.
    accuracy, agreement: None where it was not measured.
    """

    x: float | None
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


def fields_of(config: Config) -> dict[str, Any]:
    """All that may set the results of two runs apart, by dotted name: maths and numerics, the duration in epochs.

    What another field implies is left out: mixup, which the regime sets if nothing else does, and the teacher's dtype.
    """
    found = {name: value for kind in ("maths", "numerics") for name, value, _ in leaves(config, kind)}
    if epochs := epochs_of(config):
        found = {_DURATION: epochs, **found}
        del found["total_steps"]
    if config.view.mixup == float(config.view.regime == "function_matching"):
        del found["view.mixup"]
    if config.teacher.dtype == config.dtype:
        del found["teacher.dtype"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def epochs_of(config: Config) -> float | None:
    """How often a run sees its training split: as its config says, or to three digits as its steps say."""
    examples = config.source.num_train_examples
    if not examples:
        return None
    epochs = config.total_steps * config.batch_size / examples
    told = config.total_epochs
    return told if abs(epochs - told) * examples <= config.batch_size else float(f"{epochs:.3g}")


def differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields, of `fields_of`, in which runs differ, in the schema's order, seeds last."""
    names = dict.fromkeys(itertools.chain.from_iterable(runs))
    return sorted((name for name in names if len({fields.get(name) for fields in runs}) > 1), key=is_seed)


def is_seed(field: str) -> bool:
    """Whether a field changes a run by chance alone."""
    return field.rpartition(".")[2] == "seed"


def in_words(names: Sequence[str], fields: Mapping[str, Any]) -> str:
    """'view.regime=fixed, optimizer.lr=0.003'"""
    return ", ".join(f"{name}={_shown(fields.get(name))}" for name in names)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "none"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return "none" if value is None else str(value)


def labels(records: Sequence[Record]) -> list[str]:
    """What to call each run: the fields that set it apart, if that is short and tells all apart, else its place.

    Of many fields those are left out that the others imply, if there are more runs than fields.
    """
    if names := _naming(records):
        return [printable(in_words(names, fields_of(record.config))) for record in records if record.config]
    return list(map(printable, _places([record.workdir for record in records])))


def _naming(records: Sequence[Record]) -> list[str]:
    """The fields that `labels` names, seeds last; [] if it names none."""
    fields = [fields_of(record.config) for record in records if record.config]
    names = differing(fields)
    if len(fields) < len(records) or not names or len(names) > max(_MOST_NAMED, len(fields)):
        return []
    seeds = list(filter(is_seed, names))
    kept = _telling_apart([name for name in names if name not in seeds], fields, _LONGEST_NAME) + seeds
    told = {printable(in_words(kept, own)) for own in fields}
    return kept if len(told) == len(records) and max(map(len, told)) <= _LONGEST_NAME else []


def in_order(records: Sequence[Record]) -> list[Record]:
    """As a sweep has them: line by line, then along its axis, seeds last. As given where nothing tells them apart."""
    found, named = sweep(records), _naming(records)
    if not found and not named:
        return list(records)
    names = named or differing([fields_of(record.config) for record in records if record.config])
    axis = [found.field] if found and found.field else []
    ranked = [name for name in names if name not in axis and not is_seed(name)] + axis + list(filter(is_seed, names))

    def key(record: Record) -> list[Any]:
        fields = fields_of(record.config) if record.config else {}
        return [_rank(fields.get(name)) for name in ranked]

    return sorted(records, key=key)


def _places(paths: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; of a run inside another with that one's name."""
    parts = [pathlib.Path(os.path.realpath(path)).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(own[-depth - (own[-1] in (TEACHER_DIR, INIT_DIR)) :]) for own in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(map(str, paths))


def sweep(records: Sequence[Record]) -> Sweep | None:
    """What the finished runs make: a figure against a number in which they differ, or means over seeds; else None.

    The number is the duration if that joins two points, else the one of most values that does.
    """
    once: dict[Hashable, Record] = {}
    repeated = []
    for record in records:
        if record.config is None or record.summary is None:
            continue
        if once.setdefault(tuple(fields_of(record.config).items()), record) is not record:
            repeated.append(printable(str(record.workdir)))
    runs = [(fields_of(record.config), record) for record in once.values() if record.config]
    names = [name for name in differing([fields for fields, _ in runs]) if not is_seed(name)]
    values = {name: {fields.get(name) for fields, _ in runs} for name in names}
    numeric = [name for name in names if all(map(_is_number, values[name]))]
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
    told = _telling_apart(others, of_runs, _LONGEST_LABEL)
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
    for fields, record in sorted(runs, key=lambda run: [_rank(run[0].get(name)) for name in told]):
        x = float(fields[field]) if field else None
        groups.setdefault(in_words(told, fields), {}).setdefault(x, []).append(record)
    return {
        label: tuple(_point(x, same) for x, same in sorted(by_x.items(), key=lambda item: item[0] or 0.0))
        for label, by_x in groups.items()
    }


def _telling_apart(names: Sequence[str], runs: Sequence[Mapping[str, Any]], longest: int) -> list[str]:
    """The names, until labels are short without those that tell no more runs apart, paths and numbers first.

    What tells runs apart stays, however long the labels are.
    """

    def is_short(names: Sequence[str]) -> bool:
        return max(len(in_words(names, own)) for own in runs) <= longest

    def num_labels(names: Sequence[str]) -> int:
        return len({in_words(names, own) for own in runs})

    def last_to_go(name: str) -> tuple[bool, int]:
        words = [_shown(own.get(name)) for own in runs]
        return all(word.isidentifier() for word in words), -max(map(len, words))

    kept = list(names)
    for name in sorted(names, key=last_to_go):
        rest = [other for other in kept if other != name]
        if not is_short(kept) and num_labels(rest) == num_labels(kept):
            kept = rest
    return kept


def _follows(name: str, field: str, runs: Sequence[Mapping[str, Any]]) -> bool:
    """Whether runs that agree in a field agree in this one, too."""
    return len({(own[field], own[name]) for own in runs}) == len({own[field] for own in runs})


def _rank(value: Any) -> tuple[bool, float, str]:
    """To sort by: numbers first, as such."""
    return (False, float(value), "") if _is_number(value) else (True, 0.0, _shown(value))


def _is_number(value: Any) -> bool:
    return finite(value) is not None


def _point(x: float | None, records: Sequence[Record]) -> Point:
    return Point(x, *(_spread([record.score(name) for record in records]) for name in ("accuracy", "agreement")))


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(len(known), sum(known) / len(known), min(known), max(known)) if known else None

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

_DURATION = "total_epochs"
_LONGEST_LABEL = 64
_MOST_NAMED = 4


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

    x: the value of the field.
    accuracy, agreement: None where it was not measured.
    """

    x: float
    accuracy: Spread | None
    agreement: Spread | None


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Test accuracy and agreement against a field.

    field: dotted name; `log`: whether its values span a decade.
    along: numbers that make no lines because they go with it in these runs, such as a warm-up with the duration.
    implied: other fields that differ from line to line, and are not named because those that are tell them.
    repeated: directories left out, because another of the runs has all their fields and seeds.
    lines: by the other fields that differ, in words, such as 'view.regime=consistent'.
    """

    field: str
    log: bool
    along: tuple[str, ...]
    implied: tuple[str, ...]
    repeated: tuple[str, ...]
    lines: dict[str, tuple[Point, ...]]


def fields_of(config: Config) -> dict[str, Hashable]:
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


def differing(configs: Sequence[Config]) -> list[str]:
    """The fields in which configs differ, in the schema's order, seeds last."""
    found = [fields_of(config) for config in configs]
    names = dict.fromkeys(itertools.chain.from_iterable(found))
    return sorted((name for name in names if len({fields.get(name) for fields in found}) > 1), key=is_seed)


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
    """What to call each run: the fields that set it apart, if that is short and tells all apart, else its place."""
    places = list(map(printable, _places([record.workdir for record in records])))
    configs = [record.config for record in records if record.config]
    if len(configs) < 2:
        return places
    names = differing(configs)
    told = [
        in_words(names, fields_of(record.config)) if record.config and 0 < len(names) <= _MOST_NAMED else ""
        for record in records
    ]
    told = list(map(printable, told))
    unique = len(set(told)) == len(told) and all(0 < len(label) <= _LONGEST_LABEL for label in told)
    return told if unique else places


def in_order(records: Sequence[Record]) -> list[Record]:
    """By the fields that their `labels` name, as a sweep has them: line by line, then along its axis, seeds last."""
    if labels(records) == list(map(printable, _places([record.workdir for record in records]))):
        return list(records)
    found = sweep(records)
    names = differing([record.config for record in records if record.config])
    axis = [found.field] if found else []
    ranked = [name for name in names if name not in axis and not is_seed(name)] + axis + list(filter(is_seed, names))

    def key(record: Record) -> list[Any]:
        fields = fields_of(record.config) if record.config else {}
        return [_rank(fields.get(name)) for name in ranked]

    return sorted(records, key=key)


def _places(paths: Sequence[pathlib.Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    parts = [pathlib.Path(os.path.realpath(path)).parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(own[-depth:]) for own in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(map(str, paths))


def sweep(records: Sequence[Record]) -> Sweep | None:
    """The figure that the finished runs make: None if they differ in no number, or no two points would be joined."""
    once: dict[Hashable, Record] = {}
    repeated = []
    for record in records:
        if record.config is None or record.summary is None:
            continue
        if once.setdefault(tuple(fields_of(record.config).items()), record) is not record:
            repeated.append(printable(str(record.workdir)))
    runs = list(once.values())
    configs = [record.config for record in runs if record.config]
    names = [name for name in differing(configs) if not is_seed(name)]
    fields = [fields_of(config) for config in configs]
    values = {name: {own.get(name) for own in fields} for name in names}
    numeric = [name for name in names if all(_is_number(value) for value in values[name])]
    if not numeric:
        return None
    durations = [name for name in numeric if name in (_DURATION, "total_steps")]
    field = durations[0] if durations else max(numeric, key=lambda name: len(values[name]))
    along = [name for name in numeric if name != field and durations and _follows(name, field, fields)]
    others = [name for name in names if name != field and name not in along]
    told = _telling_apart(others, fields)
    groups: dict[str, dict[float, list[Record]]] = {}
    for own, record in sorted(zip(fields, runs, strict=True), key=lambda run: [_rank(run[0].get(n)) for n in told]):
        x: Any = own[field]
        groups.setdefault(in_words(told, own), {}).setdefault(float(x), []).append(record)
    lines = {label: tuple(_point(x, same) for x, same in sorted(by_x.items())) for label, by_x in groups.items()}
    if max(len(points) for points in lines.values()) < 2:
        return None
    xs = [point.x for points in lines.values() for point in points]
    implied = tuple(name for name in others if name not in told)
    return Sweep(field, min(xs) > 0 and max(xs) / min(xs) >= 10, tuple(along), implied, tuple(repeated), lines)


def _telling_apart(names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names, until labels are short without those that tell no more runs apart, paths and numbers first.

    What tells runs apart stays, however long the labels are.
    """

    def is_short(names: Sequence[str]) -> bool:
        return max(len(in_words(names, own)) for own in runs) <= _LONGEST_LABEL

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


def _point(x: float, records: Sequence[Record]) -> Point:
    return Point(x, *(_spread([record.score(name) for record in records]) for name in ("accuracy", "agreement")))


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    return Spread(len(known), sum(known) / len(known), min(known), max(known)) if known else None

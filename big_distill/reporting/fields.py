"""Finds the fields of configs that set runs apart, and says them in words."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from big_distill.config import Config, leaves

DURATION = "total_epochs"


def result_fields(config: Config) -> dict[str, Any]:
    """Returns the fields that may set two runs' results apart, by name: all but cosmetic ones, and the duration.

    Fields that another field implies are left out: mixup if the regime sets it, and the teacher's dtype if it is the
    student's.
    """
    kinds = ("maths", "place"), ("numerics",)
    fields = {name: value for group in kinds for name, value, _ in leaves(config, *group)}
    if epochs := epochs_of(config):
        fields = {DURATION: epochs, **fields}
        del fields["total_steps"]
    if config.view.mixup == float(config.view.regime == "function_matching"):
        del fields["view.mixup"]
    if config.teacher.dtype == config.dtype:
        del fields["teacher.dtype"]
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def epochs_of(config: Config) -> float | None:
    """Counts how often a run sees its training split: as its config says, or to three digits as its steps say."""
    examples = config.source.num_train_examples
    if not examples:
        return None
    epochs = config.total_steps * config.batch_size / examples
    if abs(epochs - config.total_epochs) * examples <= config.batch_size:
        return config.total_epochs
    return float(f"{epochs:.3g}")


def differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lists the fields of `result_fields` in which runs differ, in the schema's order, seeds last."""
    names = dict.fromkeys(itertools.chain.from_iterable(runs))
    return sorted((name for name in names if len({fields.get(name) for fields in runs}) > 1), key=is_seed)


def is_seed(field: str) -> bool:
    """Returns True if a field changes a run by chance alone."""
    return field.rpartition(".")[2] == "seed"


def in_words(names: Sequence[str], fields: Mapping[str, Any]) -> str:
    """Says fields as 'view.regime=fixed, optimizer.lr=0.003'."""
    return ", ".join(f"{name}={_shown(fields.get(name))}" for name in names)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value)) or "none"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return "none" if value is None else str(value)


def telling_apart(names: Sequence[str], runs: Sequence[Mapping[str, Any]], longest: int) -> list[str]:
    """Drops names that do not help to tell runs apart, until labels are short: paths and numbers first.

    Names that tell runs apart stay, even if labels are too long.
    """

    def labels(names: Sequence[str]) -> set[str]:
        return {in_words(names, fields) for fields in runs}

    def last_to_go(name: str) -> tuple[bool, int]:
        words = [_shown(fields.get(name)) for fields in runs]
        return all(word.isidentifier() for word in words), -max(map(len, words))

    kept = list(names)
    for name in sorted(names, key=last_to_go):
        rest = [other for other in kept if other != name]
        if max(map(len, labels(kept))) > longest and len(labels(rest)) == len(labels(kept)):
            kept = rest
    return kept


def rank(value: Any) -> tuple[bool, float, str]:
    """Returns the key to sort a field's values by: numbers first, by size."""
    return (False, float(value), "") if is_number(value) else (True, 0.0, _shown(value))


def is_number(value: Any) -> bool:
    """Returns True if a value is a number that has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

"""Names and orders the runs of a page."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from big_distill.errors import printable
from big_distill.reporting.fields import differing, in_words, is_seed, rank, telling_apart
from big_distill.reporting.records import Record
from big_distill.reporting.sweep import Sweep
from big_distill.run_dir.layout import INIT_DIR, TEACHER_DIR

_LONGEST = 96
_MOST_FIELDS = 4


def named(records: Sequence[Record], sweep: Sweep | None) -> list[tuple[str, Record]]:
    """Names runs and orders them as a sweep has them: line by line, then along its axis, seeds last.

    A name is the fields that set a run apart, if they are short and tell all runs apart; else it is the run's place.
    A long name leaves out fields that the others imply. Fields make no name if there are more of them than runs, and
    more than four. Runs that no field ranks stay as given.
    """
    configured = [record.fields for record in records if record.config]
    label_fields = _label_fields(configured) if len(configured) == len(records) else []
    if label_fields:
        names = [in_words(label_fields, record.fields) for record in records]
    else:
        names = _places([record.workdir for record in records])
    ranked = label_fields or (differing(configured) if sweep else [])
    axis = [sweep.field] if sweep and sweep.field else []
    ranked = [name for name in ranked if name not in axis and not is_seed(name)] + axis + list(filter(is_seed, ranked))
    order = sorted(range(len(records)), key=lambda i: [rank(records[i].fields.get(name)) for name in ranked])
    return [(printable(names[i]), records[i]) for i in order]


def _label_fields(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Chooses the fields that names are made of, seeds last; [] if names would be long, or not tell all apart."""
    names = differing(runs)
    if not names or len(names) > max(_MOST_FIELDS, len(runs)):
        return []
    seeds = list(filter(is_seed, names))
    kept = telling_apart([name for name in names if name not in seeds], runs, _LONGEST) + seeds
    labels = {printable(in_words(kept, fields)) for fields in runs}
    return kept if len(labels) == len(runs) and max(map(len, labels)) <= _LONGEST else []


def _places(paths: Sequence[pathlib.Path]) -> list[str]:
    """Finds the shortest ends of different paths that tell them apart. A run inside another has its name, too."""
    all_parts = [pathlib.Path(os.path.realpath(path)).parts for path in paths]
    ends: list[str] = []
    for depth in range(1, max(map(len, all_parts)) + 1):
        ends = ["/".join(parts[-depth - (parts[-1] in (TEACHER_DIR, INIT_DIR)) :]) for parts in all_parts]
        if len(set(ends)) == len(ends):
            break
    return ends

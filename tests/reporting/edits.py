"""Changes to what run directories hold, and to what is read of their data."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from big_distill.training import evaluation


def edit(path: pathlib.Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file to what `change` returns, or, of None, to what it made of the value."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


def with_names(monkeypatch, names):
    """Every split of data from here on has classes of these names, or without any no labels."""
    open_split = evaluation.open_split

    def renamed(*args):
        return dataclasses.replace(open_split(*args), class_names=names, num_classes=len(names) or None)

    monkeypatch.setattr(evaluation, "open_split", renamed)

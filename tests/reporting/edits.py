"""Changes to the files of run directories, and to what is read of their data."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from big_distill.training import evaluation


def edit(path: pathlib.Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file to what `change` returns, or, of None, to what it made of the value."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


@st.composite
def damaged(draw, text):
    """JSON, or lines of it, as a disk or a person leaves it: cut short, or a value gone or of another type."""
    if draw(st.booleans()):
        return text[: draw(st.integers(0, len(text)))]
    try:
        values = json.loads(text)
    except ValueError:
        lines = text.splitlines()
        number = draw(st.integers(0, len(lines) - 1))
        lines[number] = json.dumps(_changed(draw, json.loads(lines[number])))
        return "\n".join([*lines, ""])
    return json.dumps(_changed(draw, values))


def _changed(draw, value):
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from((None, True, 7, 0.5, "x", [], {})))
    value = value.copy()
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if draw(st.integers(0, 3)) == 0:
        del value[key]
    else:
        value[key] = _changed(draw, value[key])
    return value


def with_names(monkeypatch, names):
    """Every split of data from here on has classes of these names, or without any no labels."""
    open_split = evaluation.open_split

    def renamed(*args):
        return dataclasses.replace(open_split(*args), class_names=names, num_classes=len(names) or None)

    monkeypatch.setattr(evaluation, "open_split", renamed)

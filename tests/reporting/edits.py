"""Changes the files of run directories, and the names of classes that their data have."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from big_distill.training import evaluation


def edit(path: pathlib.Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file to what `change` returns; if that is None, `change` has changed the value in place."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))


@st.composite
def damaged(draw, text):
    """Damages JSON, or lines of it: cuts it short, or removes a value or gives it another type."""
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
    """Gives every split opened from here on classes of these names; with no names it has no labels."""
    open_split = evaluation.open_split

    def renamed(*args):
        return dataclasses.replace(open_split(*args), class_names=names, num_classes=len(names) or None)

    monkeypatch.setattr(evaluation, "open_split", renamed)
    monkeypatch.setattr(evaluation, "check_classes", lambda *args: None)  # the network keeps the old names

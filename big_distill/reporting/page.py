"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from big_distill.reporting import svg, wording
from big_distill.reporting.comparison import Example
from big_distill.reporting.document import Run
from big_distill.reporting.drawings import Drawings
from big_distill.reporting.figures import Drawing

_SHOWN_CLASSES = 6
_OPEN_RUNS = 3  # as many stand open on a page, else all are folded


def render(values: dict[str, Any], runs: Sequence[Run], drawings: Drawings) -> str:
    """The page.

    Args:
      values: all that it says, of `document.document`.
      runs: whose example images it shows.
      drawings: its figures.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("big_distill.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": wording.percent,
        "count": wording.count,
        "duration": wording.duration,
        "nats": wording.nats,
        "milliseconds": wording.milliseconds,
        "number": wording.number,
        "accuracy": wording.accuracy,
        "state": wording.state,
        "about": lambda runs: wording.about((run["name"], run["warnings"]) for run in runs),
        "figure": _figure,
        "picture": _picture,
        "as_json": lambda value: json.dumps(value, ensure_ascii=False),
        "as_indented_json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "points": lambda value: f"{100 * value:+.2f}",
    }
    examples = (run.comparison for run in runs)
    return environment.get_template("page.html").render(
        **values,
        drawings=drawings,
        entries=list(zip(values["runs"], drawings.runs, examples, strict=True)),
        packed_entries=list(zip(values["packed"], drawings.packed, strict=True)),
        folded=len(runs) > _OPEN_RUNS,
        extremes=_extremes,
    )


def _figure(drawing: Drawing) -> Markup:
    return Markup(svg.inline(drawing.text, drawing.name, drawing.title))


def _picture(example: Example) -> str:
    return f"data:image/png;base64,{base64.b64encode(example.png).decode()}"


def _extremes(classes: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The classes in which the student lost against its teacher, and won: the least likely by chance first."""

    ranked = sorted(classes, key=lambda score: (score["p_value"], -abs(score["difference"])))
    return {
        "lost": [score for score in ranked if score["won"] < score["lost"]][:_SHOWN_CLASSES],
        "won": [score for score in ranked if score["won"] > score["lost"]][:_SHOWN_CLASSES],
    }

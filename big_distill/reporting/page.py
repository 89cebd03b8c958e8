"""Renders the page: one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from big_distill.reporting import svg, wording
from big_distill.reporting.document import ReportedRun
from big_distill.reporting.drawings import Drawings

_WORDINGS = ("accuracy", "count", "duration", "nats", "number", "percent", "state")
_SHOWN_CLASSES = 6
_OPEN_RUNS = 3  # up to this many runs are open on a page; of more, all are folded


def render(values: dict[str, Any], runs: Sequence[ReportedRun], drawings: Drawings) -> str:
    """Renders the values of `document.document` as the page, with the example images of the runs."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("big_distill.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{name: getattr(wording, name) for name in _WORDINGS},
        "about": lambda runs: wording.about((run["name"], run["warnings"]) for run in runs),
        "figure": lambda drawing: Markup(svg.inline(drawing.text, drawing.name, drawing.title)),
        "picture": lambda example: f"data:image/png;base64,{base64.b64encode(example.png).decode()}",
        "as_json": lambda value: json.dumps(value, ensure_ascii=False),
        "as_indented_json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "points": lambda value: f"{100 * value:+.2f}",
    }
    examples = [run.comparison.examples if run.comparison else {} for run in runs]
    return environment.get_template("page.html").render(
        **values,
        drawings=drawings,
        entries=list(zip(values["runs"], drawings.runs, examples, strict=True)),
        packed_entries=list(zip(values["packed"], drawings.packed, strict=True)),
        folded=len(runs) > _OPEN_RUNS,
        extremes=_extremes,
    )


def _extremes(classes: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Chooses the classes in which the student lost against its teacher, and won: the least likely by chance first."""
    ranked = sorted(classes, key=lambda score: (score["p_value"], -abs(score["difference"])))
    return {
        "lost": [score for score in ranked if score["won"] < score["lost"]][:_SHOWN_CLASSES],
        "won": [score for score in ranked if score["won"] > score["lost"]][:_SHOWN_CLASSES],
    }

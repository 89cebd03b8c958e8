"""Writes Matplotlib's figures as SVG, in the page's colours or in colours that are readable on any background."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK, FAINT = "#010101", "#020202"
"""Text and lines are drawn with INK, grids with FAINT. Both are replaced in the file."""
SERIES = tuple(f"#0{i}0a0a" for i in range(1, 8))
"""Lines are drawn with these, one colour a line. They are replaced, too."""

_ALONE = {INK: "#797979", FAINT: "#9e9e9e"} | dict(
    zip(SERIES, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b87f00", "#3c9fd6", "#808080"), strict=True)
)
"""These colours serve on white and on dark. They are those of Okabe and Ito (2008), with darker yellows. Text has a
contrast of 4.3 on white and on #0d1117, the most that is possible on both."""
_TAG = re.compile(r"<[^<>]*>")
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "big_distill",
    "text.parse_math": False,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "axes.axisbelow": True,
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize"), 9),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def style() -> contextlib.AbstractContextManager[None]:
    """Returns a context in which figures are drawn as a page has them."""
    return mpl.rc_context(_STYLE)


def drawn(figure: Figure) -> str:
    """Writes a figure as SVG, inside `style`, in the colours that it was drawn with. Equal figures give equal SVG."""
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = _in_tags(text, r"(font-family:|font: [\d.]+px) [^;\"]*", lambda match: f"{match[1]} {_FONT}")
    used = {name for tag in _TAG.findall(text) for name in re.findall(r"#([\w.-]+)[\")]", tag)}
    text = _in_tags(text, r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "")
    return re.sub(r"\n\s*", "\n", text)


def inline(text: str, name: str, title: str) -> str:
    """Makes SVG from `drawn` a part of an HTML page, which sets the colours --ink, --faint and --series-1 to 7.

    Its ids begin with `name`, which no other figure of the page has. The title is for people who cannot see it. It is
    escaped here.
    """
    text = _in_tags(text, r'( id="|href="#|url\(#)', lambda match: f"{match[1]}{name}-")
    text = _in_tags(text, r' xmlns(:xlink)?="[^"]*"', lambda _: "")
    text = _in_tags(text, r"xlink:href", lambda _: "href")
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    variables = {INK: "var(--ink)", FAINT: "var(--faint)"}
    variables |= {colour: f"var(--series-{i})" for i, colour in enumerate(SERIES, 1)}
    return _labelled(_coloured(text, variables), title)


def alone(text: str, title: str) -> str:
    """Makes SVG from `drawn` a file of its own."""
    return f'<?xml version="1.0" encoding="utf-8"?>\n{_labelled(_coloured(text, _ALONE), title)}'


def _labelled(text: str, title: str) -> str:
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def _coloured(text: str, colours: dict[str, str]) -> str:
    return _in_tags(text, "|".join(colours), lambda match: colours[match[0]])


def _in_tags(text: str, pattern: str, replace: Callable[[re.Match[str]], str]) -> str:
    """Replaces in tags alone. The text of a figure stays as it is."""
    return _TAG.sub(lambda tag: re.sub(pattern, replace, tag[0]), text)

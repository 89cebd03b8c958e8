"""Draws the figures of a page, for a width of 360 px: that of a telephone."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from big_distill.reporting import svg
from big_distill.reporting.document import front
from big_distill.reporting.records import thinned
from big_distill.reporting.sweep import Sweep

_INCH = 72
_WIDTH = 360
_HEIGHT = 225
_LEGEND_LINE = 13
_MOST_MARKED = 15
_MARKERS = "osD^vP*"
_TEACHERS = "*Xphd"
_CLOSE = 1.5  # costs within this factor are close
_DASHES = ("-", "--", "-.", ":")
_WIDEST_LABEL, _NARROW_LABEL = 60, 25
_MOST_TICKS = 6
_MOST_NAMED, _MOST_COUNTED, _LONGEST_NAME = 40, 12, 18  # classes of a confusion matrix, letters


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Holds a figure: its file's `name`, its `title` for people who cannot see it, and the `text` from `svg.drawn`."""

    name: str
    title: str
    text: str


@dataclasses.dataclass(frozen=True)
class Line:
    """Describes a curve: its label in the legend, its x and y values, its colour, and Matplotlib's options for it."""

    label: str
    x: np.ndarray
    y: np.ndarray
    colour: int = 0
    stroke: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def curves(
    name: str,
    title: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    percent: bool,
    reference: float | None = None,
    steps: np.ndarray | None = None,
) -> Drawing:
    """Draws values against steps on a logarithmic axis.

    `percent` says that the values are fractions. Other values have a logarithmic axis, too, if all are positive.
    `reference` is a teacher's accuracy, drawn as a horizontal line. The axis has room for `steps`, or for those of the
    lines if that is None.
    """

    def draw(axes: Axes) -> None:
        for line in lines:
            x, y = thinned(line.x, line.y)
            look = {**_look(line.colour, marked=len(x) <= _MOST_MARKED), **line.stroke}
            axes.plot(x, 100 * y if percent else y, label=_label(line.label), **look)
        if reference is not None:
            axes.axhline(
                100 * reference, color=svg.INK, linestyle=(0, (4, 3)), linewidth=1, label="teacher, at its end"
            )
        shown = np.concatenate([line.x for line in lines] if steps is None else [steps])
        _log(axes, "x", shown)
        axes.set_xlim(shown.min() / 1.1, 1.1 * shown.max())
        if percent:
            bottom, top = axes.get_ylim()
            axes.set_ylim(top=min(top, 100 + 0.03 * (100 - min(bottom, 99))))
        elif all((line.y > 0).all() for line in lines):
            _log(axes, "y", np.concatenate([line.y for line in lines]))
        axes.set_xlabel("steps")
        axes.set_title(y_label)

    return _drawing(name, title, draw)


def swept(sweep: Sweep, score: str) -> Drawing | None:
    """Draws test accuracy or agreement against the field of a sweep; returns None if there is no field or no score.

    Bars and bands go from the worst to the best seed. A point of one seed has neither, and is hollow beside others.
    """
    shown = {
        label: [(point.x or 0.0, spread) for point in points if (spread := getattr(point, score))]
        for label, points in sweep.lines.items()
    }
    if sweep.field is None or not any(shown.values()):
        return None
    field = sweep.field
    some_seeds = any(spread.num_runs > 1 for points in shown.values() for _, spread in points)

    def draw(axes: Axes) -> None:
        for index, (label, points) in enumerate(shown.items()):
            if not points:
                continue
            x = np.array([at for at, _ in points])
            mean, least, most = (
                100 * np.array([getattr(spread, name) for _, spread in points]) for name in ("mean", "least", "most")
            )
            several = np.array([spread.num_runs > 1 for _, spread in points], bool)
            look = _look(index, marked=True)
            full = several if some_seeds else np.ones(len(x), bool)
            axes.plot(x, mean, label=_label(label or "all runs"), markevery=full, **look)
            if some_seeds:
                axes.plot(x[~several], mean[~several], **look | {"linestyle": "none", "fillstyle": "none"})
                axes.fill_between(x, least, most, where=several, color=look["color"], alpha=0.15, linewidth=0)
                axes.vlines(x[several], least[several], most[several], color=look["color"], linewidth=1)
        xs = [at for points in shown.values() for at, _ in points]
        if min(xs) > 0 and max(xs) / min(xs) >= 10:
            _log(axes, "x", np.array(xs))
        if len(set(xs)) <= _MOST_TICKS:
            axes.xaxis.set_major_locator(FixedLocator(sorted(set(xs))))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel(field)
        axes.set_title(f"{score} on the test split, %")

    return _drawing(f"sweep_{score}", f"{score} against {field}", draw, height=1.15 * _HEIGHT)


def tradeoff(
    name: str, title: str, x_label: str, cost: str, files: Sequence[dict[str, Any]], teachers: Sequence[dict[str, Any]]
) -> Drawing:
    """Draws accuracy against a cost on a logarithmic axis, with the Pareto front as steps.

    Files and teachers are those of a group of `document.document`. Each file has a `label` for the legend. `cost` is a
    key of the files. A teacher that lacks it is a line.
    """
    on_front = front(files, cost)

    def draw(axes: Axes) -> None:
        best = sorted((file[cost], 100 * file["accuracy"]) for file in files if file["number"] in on_front)
        best.append((max(file[cost] for file in files), best[-1][1]))  # no file to the right is better
        axes.step(*zip(*best, strict=True), where="post", color=svg.INK, linewidth=0.9, alpha=0.7, label="Pareto front")
        for index, label in enumerate(dict.fromkeys(file["label"] for file in files)):
            look = {**_look(index, marked=True), "linestyle": "none", "label": _label(label)}
            own = [file for file in files if file["label"] == label]
            for is_best, fill in ((True, "full"), (False, "none")):
                if chosen := [file for file in own if (file["number"] in on_front) == is_best]:
                    points = ([file[cost] for file in chosen], [100 * file["accuracy"] for file in chosen])
                    axes.plot(*points, fillstyle=fill, **look)
                    look["label"] = None  # it is in the legend once
        for file in files:
            if file["number"] in on_front:
                at = (file[cost], 100 * file["accuracy"])
                axes.annotate(f"{file['number']}", at, xytext=(4, -10), textcoords="offset points", fontsize=8)
        for index, teacher in enumerate(teachers):
            label, accuracy, dashes = _label(teacher["name"]), 100 * teacher["accuracy"], (0, (4, 3) + (1, 3) * index)
            line = axes.axhline(accuracy, color=svg.INK, linestyle=dashes, linewidth=1)
            if cost in teacher:
                mark = _TEACHERS[index % len(_TEACHERS)]
                axes.plot([teacher[cost]], [accuracy], mark, color=svg.INK, markersize=9, label=label)
            else:
                line.set_label(label)
        costs = np.array([file[cost] for file in files] + [one[cost] for one in teachers if one.get(cost)])
        _log(axes, "x", costs)
        axes.margins(x=0.08, y=0.12)
        if costs.max() < _CLOSE * costs.min():  # Matplotlib would show a whole decade
            axes.set_xlim(costs.min() / _CLOSE, _CLOSE * costs.max())
        axes.set_ylim(top=min(axes.get_ylim()[1], 101))
        axes.set_xlabel(_label(x_label))
        axes.set_title("accuracy, %")

    return _drawing(name, title, draw, height=1.1 * _HEIGHT)


def reliability(name: str, title: str, bins: np.ndarray) -> Drawing:
    """Draws accuracy against confidence by bin, as `comparison.Answers` has them. Dots grow with a bin's share."""
    confidence, correct, count = bins
    there = count > 0

    def draw(axes: Axes) -> None:
        x, y = 100 * confidence[there] / count[there], 100 * correct[there] / count[there]
        width = 100 / len(count)
        middle = (np.flatnonzero(there) + 0.5) * width
        axes.bar(middle, y, 0.9 * width, color=svg.SERIES[0], alpha=0.3, linewidth=0)
        axes.plot([0, 100], [0, 100], color=svg.INK, linestyle=(0, (4, 3)), linewidth=1)
        sizes = 6 + 60 * count[there] / count.sum()
        axes.scatter(x, y, sizes, color=svg.SERIES[0], linewidths=0)
        axes.set_xlim(0, 102)
        axes.set_ylim(0, 102)
        axes.set_xlabel("confidence, %")
        axes.set_title("accuracy, %")

    return _drawing(name, title, draw, width=0.62 * _WIDTH, height=0.95 * _HEIGHT)


def confusion(name: str, title: str, matrix: np.ndarray, names: Sequence[str]) -> Drawing:
    """Draws a confusion matrix, counts [K, K] by label and answer. A cell is as dark as its share of its row.

    Names of classes and counts are shown where there is room. Classes without examples and answers are left out.
    """
    there = np.flatnonzero(matrix.sum(0) + matrix.sum(1)).tolist()
    matrix, names = matrix[np.ix_(there, there)], [_short(names[k]) for k in there]
    size, examples = len(there), matrix.sum(1, keepdims=True)
    at = np.argwhere(matrix).tolist()
    shares = matrix / np.maximum(examples, 1)
    longest = max(map(len, names)) if size <= _MOST_NAMED else 0

    def draw(axes: Axes) -> None:
        cells = [[(x + i, y + j) for i, j in ((-0.5, -0.5), (-0.5, 0.5), (0.5, 0.5), (0.5, -0.5))] for y, x in at]
        colours = [to_rgba(svg.SERIES[0], 0.1 + 0.55 * shares[y, x]) for y, x in at]
        axes.add_collection(PolyCollection(cells, facecolors=colours, linewidths=0))
        for y, x in at if size <= _MOST_COUNTED else ():
            axes.text(x, y, f"{matrix[y, x]}", ha="center", va="center", fontsize=7)
        font = min(8.0, 0.6 * (_WIDTH - 5 * longest) / size)
        axes.set_xticks(range(size), names, rotation=90, fontsize=font) if longest else axes.set_xticks([])
        axes.set_yticks(range(size), names, fontsize=font) if longest else axes.set_yticks([])
        axes.set_xlim(-0.5, size - 0.5)
        axes.set_ylim(size - 0.5, -0.5)
        axes.grid(visible=False)
        axes.set_aspect("equal")
        axes.set_xlabel("answer")
        axes.set_ylabel("label")

    return _drawing(name, title, draw, height=_WIDTH)


def _short(name: str) -> str:
    """Cuts the name of a class to a length that fits beside a matrix."""
    return _label(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…")


def _drawing(
    name: str, title: str, draw: Callable[[Axes], None], width: float = _WIDTH, height: float = _HEIGHT
) -> Drawing:
    """Draws a figure, and adds a legend below if there is more than one line to tell apart."""
    with svg.style():
        figure = Figure(layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        columns = 2 if labels and max(map(len, labels)) <= _NARROW_LABEL else 1
        rows = 0
        if len(labels) > 1:
            rows = -(-len(labels) // columns) + sum(label.count("\n") for label in labels)
            figure.legend(handles, labels, loc="outside lower left", ncols=columns)
        figure.set_size_inches(width / _INCH, (height + _LEGEND_LINE * rows) / _INCH)
        return Drawing(name, title, svg.drawn(figure))


def _look(index: int, marked: bool) -> dict[str, Any]:
    """Chooses the look of the i-th line. No two of the first 28 look alike."""
    colours = len(svg.SERIES)
    look = {"color": svg.SERIES[index % colours], "linestyle": _DASHES[index // colours % len(_DASHES)]}
    return {**look, "marker": _MARKERS[(index + index // colours) % len(_MARKERS)]} if marked else look


def _label(text: str) -> str:
    """Wraps a text for a legend. A first underscore would hide it, so a space of no width comes before."""
    lines = textwrap.wrap(text, _WIDEST_LABEL) or [text]
    shown = "\n".join(lines[:2]) + ("…" if len(lines) > 2 else "")
    return f"\u200b{shown}" if shown.startswith("_") else shown


def _log(axes: Axes, which: str, values: np.ndarray) -> None:
    """Makes an axis logarithmic. Its ticks are powers of ten, with round numbers between them if there are few."""
    axes.set(**{f"{which}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    decades = np.log10(values.max() / values.min())
    between = (1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.5 else (1.0, 1.5, *range(2, 10))
    axis.set_major_locator(LogLocator(subs=between))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """Says 1,000 as 1k, 2,000,000 as 2M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"

"""Draws the pictures of the READMEs: the train step, the rooms, and accuracy against the length of training.

    python .github/pictures.py

It writes `.github/step.svg`, `rooms.svg` and `headline.svg`, which are readable on white and on dark pages. The numbers
of `headline.svg` are read from the table in `configs/README.md`. (`patience.svg` and `temperature.svg` are figures of
`big_distill.report --figures=DIR`.)
"""

from __future__ import annotations

import pathlib
import re
import sys
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import NullLocator

from big_distill.reporting import svg

ROOT = pathlib.Path(__file__).parents[1]

LAYERS = [  # top first, and in a layer from left to right: the order of `ROOMS` in tests/test_structure.py
    (
        "what a user starts",
        [("main evaluate prepare pack sensitivity doctor plan report", "the commands"), ("cli", "flags, errors")],
    ),
    ("around a run", [("reporting", "pages, scans"), ("planning", "cost, memory"), ("export", "files to ship")]),
    ("a run", [("training", "the loop"), ("resolve", "a config, checked"), ("teacher", "frozen, measured")]),
    (
        "a network",
        [
            ("weights", "files, cards"),
            ("compress", "pruned, shared"),
            ("run_dir", "checkpoints"),
            ("models", "families"),
            ("step", "the step, losses"),
        ],
    ),
    (
        "underneath",
        [
            ("parallel", "the mesh"),
            ("data", "images, draws"),
            ("config_files config", "the schema"),
            ("files", "atomic writes"),
            ("state errors terminal", "types that flow"),
        ],
    ),
]


def main(folder: pathlib.Path = ROOT / ".github") -> None:
    """Draws all of them into a folder."""
    with svg.style():
        for name, (title, figure) in {"step": _step(), "rooms": _rooms(), "headline": _headline()}.items():
            (folder / f"{name}.svg").write_text(svg.alone(svg.drawn(figure), title))


def flowers(text: str) -> tuple[float, list[tuple[int, float, float]]]:
    """Reads the results on Flowers-102 from `configs/README.md`.

    Returns the teacher's accuracy in percent, and for each length of training the epochs and two accuracies in percent:
    of the student that matched its teacher, and of the student on labels alone.
    """
    section = text.partition("on Flowers-102?")[2].partition("\n### ")[0]
    teacher = re.search(r"It reaches ([\d.]+) %", section)
    rows = re.findall(r"^\| ([\d,]+) \| ([\d.]+) % \|.*?\| ([\d.]+) % \|", section, re.MULTILINE)
    assert teacher and len(rows) > 1, "configs/README.md has another table now"
    return float(teacher[1]), [(int(epochs.replace(",", "")), float(own), float(other)) for epochs, own, other in rows]


def _headline() -> tuple[str, Figure]:
    teacher, rows = flowers((ROOT / "configs" / "README.md").read_text())
    epochs, matched, alone = zip(*rows, strict=True)
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for label, accuracies, others, colour, marker in (
        ("from the teacher's function, without a label", matched, alone, svg.SERIES[0], "o"),
        ("from labels alone", alone, matched, svg.SERIES[1], "s"),
    ):
        axes.plot(epochs, accuracies, marker=marker, color=colour, label=label)
        for x, y, other in zip(epochs, accuracies, others, strict=True):
            at = (0, 7) if y > other else (0, -14)
            axes.annotate(f"{y:.1f}", (x, y), xytext=at, textcoords="offset points", ha="center", fontsize=8)
    axes.axhline(teacher, color=svg.INK, linestyle=(0, (4, 3)), linewidth=1)
    axes.text(epochs[0], teacher + 2, f"the teacher, {teacher:.1f}", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(epochs, [f"{count:,}" for count in epochs])
    axes.set_ylim(0, 100)
    axes.set_xlabel("epochs of 1,020 images")
    axes.set_title("Flowers-102, 64 px: accuracy of the student on the test split, %")
    axes.legend(loc="lower right")
    return "Accuracy on Flowers-102 against epochs: from the teacher's function, and from labels alone", figure


def _rooms() -> tuple[str, Figure]:
    figure, axes = _canvas(100, 60)
    for row, (layer, rooms) in enumerate(LAYERS):
        y = 48 - 12 * row
        axes.text(0, y + 4.5, layer, fontsize=8, va="center")
        shares = [2.5 if len(names.split()) > 3 else 1 for names, _ in rooms]
        left, unit = 17, 80 / sum(shares)
        for (names, purpose), share in zip(rooms, shares, strict=True):
            head = textwrap.fill(names, 30 if share > 1 else 14)
            _box(axes, left, y, share * unit - 1.5, 9, head, purpose, svg.SERIES[row % 2])
            left += share * unit
    axes.annotate("", (99, 0), (99, 57), arrowprops={"arrowstyle": "->", "color": svg.INK})
    axes.text(
        17,
        59,
        "a room imports only from rooms to its right in the same row, and from rows below",
        fontsize=8,
        va="center",
    )
    return "The rooms of big_distill, from the commands down to the types that flow", figure


def _step() -> tuple[str, Figure]:
    figure, axes = _canvas(100, 58)
    plain, shared = svg.SERIES[:2]
    for x, y, head, words, colour in (
        (29, 49, "draws(seed, step)", "ids, crops, flips, one λ: on the host", plain),
        (3, 36.5, "source → grain → crop on the CPU", "uint8 pixels travel to the devices", plain),
        (55, 36.5, "source.resident", "the images live on the devices; draws travel", plain),
        (29, 24.5, "views = mixup(pixels, λ)", "one array, which both networks see", shared),
        (3, 12, "teacher(views)", "frozen, computed on the fly", plain),
        (55, 12, "student(views)", "its parameters may be compressed", plain),
        (3, 0, "loss(student, teacher, labels)", "for each example, in float32", shared),
        (55, 0, "gradients → clip → optimiser → state", "every N steps: metrics, evaluation, checkpoint", plain),
    ):
        _box(axes, x, y, 42, 8, head, words, colour)
    for start, end in (
        ((40, 49), (28, 44.5)), ((60, 49), (72, 44.5)), ((28, 36.5), (40, 32.5)), ((72, 36.5), (60, 32.5)),
        ((40, 24.5), (28, 20)), ((60, 24.5), (72, 20)), ((24, 12), (24, 8)), ((62, 12), (43, 8)), ((45, 4), (55, 4)),
    ):  # fmt: skip
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": svg.INK, "shrinkA": 0, "shrinkB": 0})
    return "One train step: draws, views, teacher and student, loss, update", figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.2, 7.2 * height / width))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(-0.7, height + 0.7)
    axes.set_axis_off()
    return figure, axes


def _box(axes: Axes, x: float, y: float, width: float, height: float, head: str, words: str, colour: str) -> None:
    look = {"boxstyle": "round,pad=0,rounding_size=1", "edgecolor": colour, "linewidth": 1.2, "fill": False}
    axes.add_patch(FancyBboxPatch((x, y), width, height, **look))
    middle = x + width / 2
    axes.text(middle, y + 0.64 * height, head, ha="center", va="center", fontsize=8.5, weight="bold", linespacing=1.1)
    axes.text(middle, y + 0.2 * height, words, ha="center", va="center", fontsize=8)


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:2]))

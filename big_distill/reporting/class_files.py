"""Writes what an evaluation found about each class: precision and recall, and the confusion matrix, as CSV and SVG."""

from __future__ import annotations

import csv
import io
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from big_distill.errors import ConfigError, RunError
from big_distill.files import atomic
from big_distill.reporting import classes, figures, svg
from big_distill.step import scoring

_CORNER = "label \\ answer"
_TITLE = "confusion matrix"
_MARKS = {
    "classes.csv": ",".join(classes.HEADS),
    "confusion.csv": _CORNER,
    "confusion.svg": svg.alone("<svg", _TITLE).removesuffix('"'),
}
"""Names the files, and how each begins."""


def check_ours(directory: pathlib.Path) -> None:
    """Raises ConfigError if the directory has a file that would be lost, because no evaluation wrote it."""
    for name, mark in _MARKS.items():
        path = directory / name
        if path.is_file() and not path.read_bytes().startswith(mark.encode()):
            raise ConfigError(f"--out={directory}: {path} is not of an evaluation and would be lost")


def write(directory: pathlib.Path, totals: scoring.Totals, names: Sequence[str], what: str) -> list[pathlib.Path]:
    """Writes classes.csv and, up to `scoring.MOST_CONFUSED` classes, confusion.csv and confusion.svg.

    Args:
      directory: it is made if need be; files of an earlier evaluation are replaced.
      totals: the sums of an evaluation (`evaluation.add_up_run`).
      names: the names of the K classes; () for their numbers.
      what: says in the figure's title what was evaluated.

    Returns:
      The files.

    Raises:
      RunError: there are no labels, or a file cannot be written.
    """
    if not totals.get("labelled"):
        raise RunError(f"{what} has no labels, so nothing is known about its classes")
    names = names or [str(k) for k in range(totals["classes"].shape[1])]
    texts = {"classes.csv": _csv([classes.HEADS, *map(dict.values, classes.rows(names, totals["classes"]))])}
    if "confusion" in totals:
        matrix = totals["confusion"].astype(int)
        texts["confusion.csv"] = _csv([(_CORNER, *names), *((n, *row) for n, row in zip(names, matrix, strict=True))])
        drawing = figures.confusion("confusion", f"{_TITLE} of {what}", matrix, names)
        texts["confusion.svg"] = svg.alone(drawing.text, drawing.title)
    written = {directory / name: text.encode() for name, text in texts.items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, data in written.items():
            atomic.write(path, data)
    except OSError as error:
        raise RunError(f"{error.filename} cannot be written: {error.strerror}") from error
    return list(written)


def _csv(lines: Iterable[Iterable[Any]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue()

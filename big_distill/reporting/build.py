"""From run directories to files: reads, compares, draws, writes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from big_distill.errors import BigDistillError, ConfigError, DataError, RunError, printable
from big_distill.files import atomic
from big_distill.reporting import comparison, document, markdown, page, svg, wording
from big_distill.reporting.document import Run
from big_distill.reporting.drawings import draw
from big_distill.reporting.naming import named
from big_distill.reporting.records import read_all
from big_distill.reporting.sweep import sweep
from big_distill.run_dir import layout
from big_distill.terminal import say

_NOT_PACKED = "no pack.json: big_distill.pack makes files, and measures their size and latency"
_MOST_APART = 0.01  # what is the same accuracy, computed on two machines
_MOST_DRAWN = 16
"""Runs of which each is run beside its teacher and has its own figures, which take a quarter of a second each."""


def report(
    directories: Sequence[pathlib.Path],
    out: pathlib.Path,
    split: str | None = None,
    data_dir: str | None = None,
    compare: bool = True,
    num_examples: int = 12,
    figures_dir: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Writes the page, and .json and .md beside it.

    Args:
      directories: of runs, in any state.
      out: the page, *.html.
      split: that students and teachers are compared on, in TFDS syntax; None: each run's test split.
      data_dir: where TFDS sets are, if not where the runs had them.
      compare: whether finished runs' students are run beside their teachers, which needs the data.
      num_examples: images of each kind and run, at most.
      figures_dir: where each figure is written as a file, too.

    Returns:
      What the page says (see `document`).

    Raises:
      RunError: none of the directories holds a run, or a file cannot be written.
      ConfigError: a file that is no report's would be lost, or there is no such split in any run's data.
    """
    records = read_all(directories)
    files = [out, *(out.with_suffix(suffix) for suffix in (".json", ".md"))]
    _check_writable(files, figures_dir)
    _check_ours(files)
    few = len(records) <= _MOST_DRAWN
    together = sweep(records)
    runs = [Run(name, record) for name, record in named(records, together)]
    if compare and few:
        runs = _all_compared(runs, split, data_dir, num_examples)
    values = document.document(runs, together)
    figures = draw(runs, together, values["packed"], singly=few)
    html = page.render(values, runs, figures)
    if not few:
        say(
            f"{len(runs)} runs: each is drawn, and compared with its teacher, if there are up to {_MOST_DRAWN}; report "
            f"on fewer for that, or see {files[1]} for their curves"
        )
    for line in _lines(values["runs"]):
        say(line)
    texts = (html, json.dumps(values, indent=1, allow_nan=False) + "\n", markdown.table(values))
    for file, text in zip(files, texts, strict=True):
        atomic.write(file, text.encode(errors="backslashreplace"))
    if figures_dir:
        for drawing in figures.all():
            text = svg.alone(drawing.text, drawing.title)
            atomic.write(figures_dir / f"{drawing.name}.svg", text.encode(errors="backslashreplace"))
    return values


def _check_ours(files: Sequence[pathlib.Path]) -> None:
    """That what is written beside the page takes no other file's place.

    Raises:
      ConfigError: it would.
    """
    html, values, table = files
    in_run = (html.parent / layout.CONFIG_FILE).exists() and values.name in layout.JSON_FILES
    for path, is_ours in ((values, document.is_document), (table, markdown.is_table)):
        if (path is values and in_run) or (path.is_file() and not is_ours(path.read_bytes())):
            raise ConfigError(f"--out={html}: {path} beside it is not of a report and would be lost")


def _check_writable(files: Sequence[pathlib.Path], figures_dir: pathlib.Path | None) -> None:
    """Before the work, not after."""
    path = files[0]
    try:
        for path in files:
            atomic.check_replaceable(path)
        if figures_dir:
            path = figures_dir
            path.mkdir(parents=True, exist_ok=True)
            for path in (figures_dir / "figure.svg", *figures_dir.glob("*.svg")):
                atomic.check_replaceable(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from error


def _all_compared(runs: Sequence[Run], split: str | None, data_dir: str | None, num_examples: int) -> list[Run]:
    """Each run beside its teacher, if that can be.

    Raises:
      ConfigError: of no run can the split or the directory that was asked for be read.
    """
    found: list[Run] = []
    refused: list[BigDistillError] = []
    for run in runs:
        try:
            found.append(_compared(run, split, data_dir, num_examples))
        except BigDistillError as error:
            refused += [error] if isinstance(error, ConfigError | DataError) else []
            found.append(dataclasses.replace(run, warnings=[f"not compared with a teacher: {error}"]))
        except OSError as error:
            line = f"not compared with a teacher: {error.filename or 'a file'} cannot be read: {error.strerror}"
            found.append(dataclasses.replace(run, warnings=[printable(line)]))
    if refused and (split or data_dir) and not any(run.comparison for run in found):
        flags = " ".join(f"--{name}={value}" for name, value in (("split", split), ("data_dir", data_dir)) if value)
        raise ConfigError(f"{flags}: of no run can it be read: {refused[0]}")
    return found


def _compared(run: Run, split: str | None, data_dir: str | None, num_examples: int) -> Run:
    """A run beside its teacher, if it is finished.

    Raises:
      BigDistillError: there are no data, or no student.
    """
    record, config = run.record, run.record.config
    if config is None or record.summary is None:
        return dataclasses.replace(run, notes=["not compared with a teacher: it is not finished"] if config else [])
    found = comparison.compare(record.workdir, config, split, data_dir, num_examples, run.name)
    alone = found.teacher is None and not found.problems
    notes = ["trained without a teacher: there is none to compare with"] if alone else []
    warnings = list(found.problems)
    told, measured = record.score("accuracy"), found.student.accuracy
    same_split = found.split == config.evaluated_on.test
    if same_split and told is not None and measured is not None and abs(told - measured) > _MOST_APART:
        said, seen = wording.percent(told), wording.percent(measured)
        warnings.append(f"its summary says {said} of {found.split}, its weights have {seen}")
    return dataclasses.replace(run, comparison=found, notes=notes, warnings=warnings)


def _lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong or missing, for the terminal."""
    others = (
        (run["name"], [*run["warnings"], *run["notes"], *([_NOT_PACKED] if run["packed"] is False else [])])
        for run in runs
    )
    problems = [line for run in runs for line in run["problems"]]
    return problems + [f"{names}: {line}" for names, line in wording.about(others)]

"""Makes a page about run directories: reads, compares, draws, writes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from big_distill.errors import BigDistillError, ConfigError, DataError, RunError, printable
from big_distill.files import atomic
from big_distill.reporting import comparison, document, markdown, page, svg, wording
from big_distill.reporting.document import ReportedRun
from big_distill.reporting.drawings import draw
from big_distill.reporting.naming import named
from big_distill.reporting.records import read_all
from big_distill.reporting.sweep import sweep
from big_distill.run_dir import layout
from big_distill.terminal import percent, say

_NOT_PACKED = "no pack.json: big_distill.pack makes files, and measures their size and latency"
_MOST_APART = 0.01  # largest difference of accuracies that two machines compute of the same weights and images
_MOST_DRAWN = 16
"""Up to this many runs are compared with their teachers and have their own figures. A figure takes 0.25 seconds."""


def report(
    directories: Sequence[pathlib.Path],
    out: pathlib.Path,
    split: str | None = None,
    data_dir: str | None = None,
    compare: bool = True,
    num_examples: int = 12,
    figures_dir: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Writes the page, *.html, and .json and .md beside it. Returns its values (see `document`).

    Args:
      directories: run directories, in any state.
      out: the page.
      split: the split on which students and teachers are compared, in TFDS syntax; None: each run's test split.
      data_dir: the directory of TFDS sets, if it is not the runs'.
      compare: True to compare the students of finished runs with their teachers, which needs the data.
      num_examples: the largest number of images of each kind and run.
      figures_dir: a directory in which each figure is also written as a file.

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
    runs = [ReportedRun(name, record) for name, record in named(records, together)]
    if compare and few:
        runs = _all_compared(runs, split, data_dir, num_examples)
    values = document.document(runs, together)
    drawings = draw(runs, together, values["packed"], singly=few)
    html = page.render(values, runs, drawings)
    if not few:
        say(
            f"{len(runs)} runs: each is drawn and compared with its teacher only if there are at most {_MOST_DRAWN}; "
            f"report on fewer runs, or see {files[1]} for their curves"
        )
    for line in _lines(values["runs"]):
        say(line)
    texts = (html, json.dumps(values, indent=1, allow_nan=False) + "\n", markdown.table(values))
    written = dict(zip(files, texts, strict=True))
    if figures_dir:
        written |= {figures_dir / f"{d.name}.svg": svg.alone(d.text, d.title) for d in drawings.all()}
    for file, text in written.items():
        atomic.write(file, text.encode(errors="backslashreplace"))
    return values


def _check_ours(files: Sequence[pathlib.Path]) -> None:
    """Raises ConfigError if the files beside the page would replace any but those of an earlier report."""
    html, values, table = files
    in_run = (html.parent / layout.CONFIG_FILE).exists() and values.name in layout.JSON_FILES
    for path, is_ours in ((values, document.is_document), (table, markdown.is_table)):
        if (path is values and in_run) or (path.is_file() and not is_ours(path.read_bytes())):
            raise ConfigError(f"--out={html}: {path} beside it is not of a report and would be lost")


def _check_writable(files: Sequence[pathlib.Path], figures_dir: pathlib.Path | None) -> None:
    """Raises RunError if a file cannot be written, before the work is done."""
    try:
        for path in files:
            atomic.check_replaceable(path)
        if figures_dir:
            figures_dir.mkdir(parents=True, exist_ok=True)
            for path in (figures_dir / "figure.svg", *figures_dir.glob("*.svg")):
                atomic.check_replaceable(path)
    except OSError as error:
        raise RunError(f"{error.filename} cannot be written: {error.strerror}") from error


def _all_compared(
    runs: Sequence[ReportedRun], split: str | None, data_dir: str | None, num_examples: int
) -> list[ReportedRun]:
    """Compares each run with its teacher, if possible. Raises ConfigError if no run has the split or data of a flag."""
    compared: list[ReportedRun] = []
    refused: list[BigDistillError] = []
    for run in runs:
        try:
            compared.append(_compared(run, split, data_dir, num_examples))
        except (BigDistillError, OSError) as error:
            refused += [error] if isinstance(error, ConfigError | DataError) else []
            line = printable(f"not compared with a teacher: {error}")
            compared.append(dataclasses.replace(run, warnings=[line]))
    if refused and (split or data_dir) and not any(run.comparison for run in compared):
        flags = " ".join(f"--{name}={value}" for name, value in (("split", split), ("data_dir", data_dir)) if value)
        raise ConfigError(f"{flags}: no run can be compared with it: {refused[0]}")
    return compared


def _compared(run: ReportedRun, split: str | None, data_dir: str | None, num_examples: int) -> ReportedRun:
    """Compares a run with its teacher, if it is finished. Raises as `comparison.compare` does."""
    record, config = run.record, run.record.config
    if config is None or record.summary is None:
        return dataclasses.replace(run, notes=["not compared with a teacher: it is not finished"] if config else [])
    compared = comparison.compare(record.workdir, config, split, data_dir, num_examples, run.name)
    alone = compared.teacher is None and not compared.problems
    notes = ["trained without a teacher: there is none to compare with"] if alone else []
    warnings = list(compared.problems)
    in_summary, measured = record.score("accuracy"), compared.student.accuracy
    same_split = compared.split == config.evaluated_on.test
    if same_split and in_summary is not None and measured is not None and abs(in_summary - measured) > _MOST_APART:
        said, seen = percent(in_summary), percent(measured)
        warnings.append(f"its summary says {said} of {compared.split}, its weights have {seen}")
    return dataclasses.replace(run, comparison=compared, notes=notes, warnings=warnings)


def _lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Lists lines for the terminal about what is wrong or missing."""
    others = (
        (run["name"], [*run["warnings"], *run["notes"], *([_NOT_PACKED] if run["packed"] is False else [])])
        for run in runs
    )
    problems = [line for run in runs for line in run["problems"]]
    return problems + [f"{names}: {line}" for names, line in wording.about(others)]

"""From run directories to files: reads, compares, draws, writes."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tqdm

from big_distill import atomic
from big_distill import workdir as workdirs
from big_distill.errors import BigDistillError, ConfigError, DataError, RunError, printable
from big_distill.metrics import say
from big_distill.reporting import comparison, document, figures, page, svg
from big_distill.reporting.document import AGREEMENT, KL, LOSS, SPEED, Run
from big_distill.reporting.figures import Drawing, Line
from big_distill.reporting.records import Record, finite, read_all, runs_of
from big_distill.reporting.sweep import in_order, labels, sweep

_MOST_LABELS = 7
_NOT_PACKED = "no pack.json: big_distill.pack makes files, and measures their size and latency"
_MOST_LINES = 10
_MOST_APART = 0.01  # what is the same accuracy, computed on two machines
_MOST_DRAWN = 16
"""Runs of which each is run beside its teacher and has its own figures, which take a quarter of a second each."""
_STROKES = {"test": 0, "validation": 1, "training batches": 2}


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
    records = in_order(read_all(directories))
    files = [out, *(out.with_suffix(suffix) for suffix in (".json", ".md"))]
    _check_writable(files, figures_dir)
    _check_ours(files)
    each = len(records) <= _MOST_DRAWN
    runs = _all_compared(records, split, data_dir, num_examples if compare and each else None)
    swept = sweep(records)
    values = document.document(runs, swept)
    drawn = [
        (
            _curves(index, run) if each else [],
            _throughput(index, run) if each else [],
            _reliability(index, run),
        )
        for index, run in enumerate(tqdm.tqdm(runs, "figures", unit="run", disable=not sys.stderr.isatty()), 1)
    ]
    drawings = page.Drawings(
        together=_together(runs),
        curves=[curves for curves, _, _ in drawn],
        throughput=[speed for _, speed, _ in drawn],
        reliability=[reliability for _, _, reliability in drawn],
        sweep=[figure for score in ("accuracy", "agreement") if swept and (figure := figures.swept(swept, score))],
        pareto=[_tradeoffs(index, group) for index, group in enumerate(values["packed"], 1)],
        each=each,
    )
    html = page.render(values, runs, drawings)
    if not each:
        say(
            f"{len(runs)} runs: each is drawn, and compared with its teacher, if there are up to {_MOST_DRAWN}; report "
            f"on fewer for that, or see {files[1]} for their curves"
        )
    for line in _lines(values["runs"]):
        say(line)
    texts = (html, json.dumps(values, indent=1, allow_nan=False) + "\n", document.markdown(values))
    for file, text in zip(files, texts, strict=True):
        atomic.write(file, text.encode(errors="backslashreplace"))
    if figures_dir:
        for drawing in drawings.all():
            text = svg.alone(drawing.text, drawing.title)
            atomic.write(figures_dir / f"{drawing.name}.svg", text.encode(errors="backslashreplace"))
    return values


def _check_ours(files: Sequence[pathlib.Path]) -> None:
    """That what is written beside the page takes no other file's place.

    Raises:
      ConfigError: it would.
    """
    html, values, table = files
    in_run = (html.parent / workdirs.CONFIG_FILE).exists() and values.name in workdirs.JSON_FILES
    for path, is_ours in ((values, document.is_document), (table, document.is_markdown)):
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


def _all_compared(
    records: Sequence[Record], split: str | None, data_dir: str | None, num_examples: int | None
) -> list[Run]:
    """Each run with its name, and, unless `num_examples` is None, beside its teacher if that can be.

    Raises:
      ConfigError: of no run can the split or the directory that was asked for be read.
    """
    runs: list[Run] = []
    refused: list[BigDistillError] = []
    for record, name in zip(records, labels(records), strict=True):
        run = Run(name, record, None)
        if num_examples is not None:
            try:
                run = _compared(record, name, split, data_dir, num_examples)
            except BigDistillError as error:
                refused += [error] if isinstance(error, ConfigError | DataError) else []
                run = Run(name, record, None, warnings=[f"not compared with a teacher: {error}"])
            except OSError as error:
                line = printable(f"not compared with a teacher: {error.filename} cannot be read: {error.strerror}")
                run = Run(name, record, None, warnings=[line])
        runs.append(run)
    if refused and (split or data_dir) and not any(run.comparison for run in runs):
        flags = " ".join(f"--{name}={value}" for name, value in (("split", split), ("data_dir", data_dir)) if value)
        raise ConfigError(f"{flags}: of no run can it be read: {refused[0]}")
    return runs


def _compared(record: Record, name: str, split: str | None, data_dir: str | None, num_examples: int) -> Run:
    """A run beside its teacher, if it is finished.

    Raises:
      BigDistillError: there are no data, or no student.
    """
    config = record.config
    if config is None or record.summary is None:
        notes = ["not compared with a teacher: it is not finished"] if config else []
        return Run(name, record, None, notes)
    found = comparison.compare(record.workdir, config, split, data_dir, num_examples, name)
    alone = found.teacher is None and not found.problems
    notes = ["trained without a teacher: there is none to compare with"] if alone else []
    warnings = list(found.problems)
    told, measured = record.score("accuracy"), found.student.accuracy
    same_split = found.split == config.evaluated_on.test
    if same_split and told is not None and measured is not None and abs(told - measured) > _MOST_APART:
        said, seen = document.percent(told), document.percent(measured)
        warnings.append(f"its summary says {said} of {found.split}, its weights have {seen}")
    return Run(name, record, found, notes, warnings)


def _lines(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What is wrong or missing, for the terminal."""
    others = (
        (run["name"], [*run["warnings"], *run["notes"], *([_NOT_PACKED] if run["packed"] is False else [])])
        for run in runs
    )
    problems = [line for run in runs for line in run["problems"]]
    return problems + [f"{names}: {line}" for names, line in document.about(others)]


def _together(runs: Sequence[Run]) -> list[Drawing]:
    """The students of several runs on one split, the test split if they have it, where a figure can tell them apart."""
    found = []
    for metric, label in (("accuracy", "accuracy, %"), ("kl", "KL(teacher || student), nats")):
        for split in ("test", "validation"):
            series = [(run.name, *run.record.series(f"eval/{split}/{metric}")) for run in runs]
            logged = [(name, steps, values) for name, steps, values in series if len(steps)]
            lines = [Line(name, steps, values, colour) for colour, (name, steps, values) in enumerate(logged)]
            if 1 < len(lines) <= _MOST_LINES and max(len(line.x) for line in lines) > 1:
                title, name = f"all runs, {split} split: {label}", f"together_{metric}"
                found.append(figures.curves(name, title, f"{split}: {label}", lines, percent=metric == "accuracy"))
                break
    return found


def _curves(index: int, run: Run) -> list[Drawing]:
    record = run.record
    whole = [
        (colour, who, own, name)
        for colour, (who, own) in enumerate(runs_of(record))
        for name in document.drawn_metrics(own)
    ]

    def lines(kept: Callable[[str], bool]) -> list[Line]:
        found = []
        for colour, who, own, name in whole:
            steps, values = own.series(name)
            if kept(name) and len(steps):
                if name == LOSS:
                    what, stroke = own.config.objective.name if own.config else "unknown objective", 0
                else:
                    what = "training batches" if name.startswith("train/") else name.split("/")[1]
                    stroke = _STROKES.get(what, 0)
                found.append(Line(f"{who}, {what}", steps, values, colour, stroke))
        return found

    steps = [own.series(name)[0] for _, _, own, name in whole]
    teacher = record.teacher_scores or {}
    wanted = (
        ("accuracy", "accuracy, %", lines(lambda n: n.endswith("/accuracy")), True),
        ("kl", "KL(teacher || student), nats", lines(lambda n: n == KL or n.endswith("/kl")), False),
        (
            "agreement",
            "agreement with the teacher, %",
            lines(lambda n: n == AGREEMENT or n.endswith("/agreement")),
            True,
        ),
        ("loss", "loss", lines(lambda n: n == LOSS), False),
    )
    return [
        figures.curves(
            f"run{index}_{name}",
            f"{run.name}: {label} against steps",
            label,
            own,
            percent=is_rate,
            reference=finite(teacher.get("accuracy")) if name == "accuracy" else None,
            steps=np.concatenate(steps),
        )
        for name, label, own, is_rate in wanted
        if own
    ]


def _throughput(index: int, run: Run) -> list[Drawing]:
    lines = [Line(who, *own.series(SPEED), colour) for colour, (who, own) in enumerate(runs_of(run.record))]
    lines = [line for line in lines if len(line.x)]
    title = f"{run.name}: images a second against steps"
    return [figures.curves(f"run{index}_speed", title, "images/s", lines, percent=False)] if lines else []


def _reliability(index: int, run: Run) -> list[Drawing]:
    if run.comparison is None:
        return []
    networks = (("student", run.comparison.student), ("teacher", run.comparison.teacher))
    return [
        figures.reliability(f"run{index}_reliability_{who}", f"{run.name}: {who}, accuracy against confidence", answers)
        for who, answers in networks
        if answers is not None and answers.bins is not None
    ]


def _tradeoffs(index: int, group: dict[str, Any]) -> list[Drawing]:
    files = [file for file in group["files"] if file["accuracy"] is not None]
    if not files:
        return []
    runs = {file["run"] for file in files}
    by_run = 1 < len(runs) <= _MOST_LABELS

    def label(file: dict[str, Any]) -> str:
        return file["run"] if by_run else " ".join(filter(None, (file["format"], file["precision"])))

    title = f"of packed files, {group['dataset']} {group['split']}"
    dots = [figures.Dot(label(f), f["number"], f["bytes"], f["accuracy"], f["on_bytes_front"]) for f in files]
    teachers = [(t["name"], t["bytes"], t["accuracy"]) for t in group["teachers"]]
    found = [figures.tradeoff(f"packed{index}_bytes", f"accuracy against bytes {title}", "bytes", dots, teachers)]
    machines = document.by_machine(files)
    for number, (machine, same) in enumerate(machines.items(), 1):
        which, where = (f"{number}", f", {machine}") if len(machines) > 1 else ("", "")
        dots = [figures.Dot(label(f), f["number"], f["latency_ms"], f["accuracy"], f["on_latency_front"]) for f in same]
        name, axis = f"packed{index}_latency{which}", f"ms an image, one at a time{where}"
        unknown = [(name, None, accuracy) for name, _, accuracy in teachers]
        found.append(figures.tradeoff(name, f"accuracy against latency {title}{where}", axis, dots, unknown))
    return found

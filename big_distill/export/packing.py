"""Packs a student into files; reads them back and evaluates them before it reports their sizes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import shutil
import statistics
import timeit
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import Config
from big_distill.data.pipeline import TrainPipeline
from big_distill.errors import ConfigError, RunError, nearest
from big_distill.export import predictor, rounding
from big_distill.export.evaluation import evaluate_predictors
from big_distill.export.formats import EXECUTABLE_SUFFIXES, FORMATS, Views, write_card
from big_distill.export.predictor import Predictor
from big_distill.parallel import processes
from big_distill.run_dir.environment import machine
from big_distill.run_dir.layout import PACK_FILE, read_config, read_json, write_json
from big_distill.terminal import say
from big_distill.training.evaluation import (
    NO_FIELDS,
    mesh_for,
    open_eval,
    open_split,
    remarks,
    student_of,
    training_source,
    with_data,
)

TOLERANCE = 1e-3
"""Bounds the largest difference between the logits of a file in floats and the network's, in standard deviations."""
ROUNDED_TOLERANCE = 0.25
"""Bounds the mean difference where the network rounds: a difference of one step here changes the layers after it."""
_TRIAL_DIR = ".packing"
_NUM_TIMINGS = 50
_NUM_VIEWS = 256


def pack(
    workdir: pathlib.Path,
    formats: Sequence[str],
    step: str,
    split: str,
    source: Mapping[str, str | None] = NO_FIELDS,
    precision: str | None = None,
) -> list[dict[str, Any]]:
    """Writes files into a run directory, and a pack.json about them and earlier files.

    Args:
      workdir: the run directory.
      formats: names in `FORMATS`.
      step: step of the student: 'final', 'latest', 'best' or the number of a checkpoint.
      split: the split that the files are evaluated on.
      source: fields of other data to evaluate on (see `evaluation.with_data`).
      precision: the one of `rounding.PRECISIONS` that the student is rounded to first; None: it stays as it is.

    Returns:
      For each file `format`, `precision`, `path`, `step`, `split`, `bytes`, `ratio` (the bytes of the weights and
      running statistics of `config.student` in float32, divided by those of the file), `nonzero` (parameters),
      `bits_per_weight`, `difference` (the largest between its logits and the network's, in their standard deviations),
      `accuracy` and `agreement` (fractions, of the file as it was read back; None without labels, or without a
      teacher), `latency_ms` (median, one image), `machine` (the one that measured it) and `flops` (of one image).

    Raises:
      ConfigError: an unknown format or precision, or one whose extra is not installed.
      RunError: no such run or step, or a file that does not hold what was written into it.
    """
    formats = _checked(formats, precision)
    trained = with_data(read_config(workdir), {"data_dir": source.get("data_dir")})
    config = with_data(read_config(workdir), source)
    mesh = mesh_for(config)
    student, views = student_of(workdir, step, mesh), functools.cache(functools.partial(_training_views, trained))
    if precision:
        student = rounding.quantize(student, precision, views)
    data = open_eval(config, split, student.architecture.bit_depth, student.architecture.card.class_names)
    for line in (
        *remarks(config, data.source),
        f"evaluates on {data.source.name}, {data.source.num_examples:,} examples",
    ):
        say(line)
    pixels = next(iter(data))["pixels"]
    teacher = teachers.load(config, workdir, mesh, student.architecture.card.class_names)
    stem = "-".join(["student", *([step] if step != "final" else []), *([precision] if precision else [])])
    with _trial_directory(workdir) as trial:  # a file replaces a good one only after it was evaluated
        files = {name: trial / (stem + FORMATS[name].suffix) for name in formats}
        processes.on_first_process(lambda: _write(files, student, views))
        networks = [predictor.load(file, student.architecture) for file in files.values()]
        logits = predictor.of_network(student).classify(pixels)
        differences = [
            _check(file, student, network.classify(pixels), logits)
            for file, network in zip(files.values(), networks, strict=True)
        ]
        scores = evaluate_predictors(networks, teacher, data, mesh)
        dense = dataclasses.replace(student.architecture, model=config.student)
        num_weights = weights.num_params(dense.abstract_variables())

        def keep() -> list[dict[str, Any]]:
            shared: dict[str, Any] = {"precision": precision, "step": step, "split": split}
            shared |= {"nonzero": weights.num_nonzero(student.variables["params"]), "flops": _flops(student)}
            rows = []
            for name, network, difference, metrics in zip(files, networks, differences, scores, strict=True):
                path, size = workdir / files[name].name, files[name].stat().st_size
                row: dict[str, Any] = {"format": name, "path": str(path), **shared, "bytes": size}
                row |= {"ratio": 4 * num_weights / size, "bits_per_weight": 8 * size / num_weights}
                row |= {"difference": difference, **{key: metrics.get(key) for key in ("accuracy", "agreement")}}
                rows.append(row | {"latency_ms": _latency(network, pixels[:1]), "machine": machine()})
            _put_in_place(workdir, trial, rows)
            return rows

        return cast(list[dict[str, Any]], processes.on_first_process(keep))


@contextlib.contextmanager
def _trial_directory(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
    """Makes an empty directory, and removes it with all that is left there, also after an error or a signal."""
    trial = workdir / _TRIAL_DIR

    def make() -> None:
        shutil.rmtree(trial, ignore_errors=True)  # a pack that was killed may have left it
        trial.mkdir()

    processes.on_first_process(make)
    try:
        yield trial
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(trial, ignore_errors=True)


def _checked(formats: Sequence[str], precision: str | None) -> list[str]:
    """Returns the formats, each once.

    Raises:
      ConfigError: there is none, one or the precision is unknown, or the extra that one needs is missing.
    """
    for flag, known, given in (
        ("--formats", list(FORMATS), formats),
        ("--quantize", list(rounding.PRECISIONS), [precision] if precision else []),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(f"{flag}={','.join(given)}: {name!r} is not known{nearest(name, known)}")
    if not formats:
        raise ConfigError(f"--formats= is empty: expected some of {', '.join(FORMATS)}")
    for extra in (FORMATS[name].extra for name in formats):
        if extra is not None:
            extra.check()
    return list(dict.fromkeys(formats))


def _write(files: Mapping[str, pathlib.Path], student: weights.Network, views: Views) -> None:
    """Writes the files, given by format, and their cards."""
    for name, file in files.items():
        FORMATS[name].write(file, student, views)
        if FORMATS[name].read:
            write_card(file, student.architecture)


def _put_in_place(workdir: pathlib.Path, trial: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Moves the files into the run directory and writes their rows beside those of others."""
    table, replaced = workdir / PACK_FILE, {row["path"] for row in rows}
    before = read_json(table, [{"path": str}]) if table.is_file() else []
    others = [row for row in before if row["path"] not in replaced]
    write_json(table, others)  # no row may describe a file that was replaced
    for file in sorted(trial.iterdir()):
        file.replace(workdir / file.name)
    write_json(table, others + rows)


def _training_views(config: Config) -> np.ndarray:
    """Makes the first training views, uint8 [N, S, S, C], the same in every process."""
    data = TrainPipeline(config, open_split(config, training_source(config), config.source.train))
    batches = [data.batch(step)["pixels"] for step in range(-(-_NUM_VIEWS // config.batch_size))]
    return np.concatenate(batches)[:_NUM_VIEWS]


def _check(path: pathlib.Path, student: weights.Network, logits: np.ndarray, expected: np.ndarray) -> float:
    """Checks a file; returns the largest difference of its logits from the network's, in standard deviations."""
    if path.suffix not in EXECUTABLE_SUFFIXES:
        read = weights.load(path, student.architecture)
        if weights.sha256(read.variables) != weights.sha256(student.variables):
            raise RunError(f"{path} does not hold what was written into it: this is a bug, or a bad disk")
    differences = np.abs(logits - expected) / max(expected.std(), 1e-30)
    mean, largest = float(differences.mean()), float(differences.max())
    in_words = f"{mean:.2g} on average and {largest:.2g} at most, in standard deviations"
    rounds = student.architecture.model.activation_bits > 0
    allowed = f"{ROUNDED_TOLERANCE} on average" if rounds else f"{TOLERANCE} at most"
    if not (mean <= ROUNDED_TOLERANCE if rounds else largest <= TOLERANCE):
        raise RunError(
            f"{path} does not compute what it should: its logits differ from the network's by {in_words} (allowed: "
            f"{allowed})"
        )
    say(
        f"{path.name} has {path.stat().st_size:,} bytes; it was read back, and its logits differ from the network's by "
        f"{in_words} (allowed: {allowed})"
    )
    return largest


def _latency(network: Predictor, image: np.ndarray) -> float:
    """Measures the median time for one image, in milliseconds."""
    times = timeit.repeat(lambda: network.classify(image), number=1, repeat=_NUM_TIMINGS + 1)
    return 1e3 * statistics.median(times[1:])


def _flops(network: weights.Network) -> float:
    """Counts the FLOPs of one image, as XLA does."""
    architecture = network.architecture
    model = architecture.build("float32")

    def logits(variables: weights.Variables, image: jax.Array) -> jax.Array:
        return model.apply(variables, image, train=False)[0].logits

    image = jax.ShapeDtypeStruct(architecture.input_shape, np.float32)
    costs = jax.jit(logits).lower(network.variables, image).compile().cost_analysis() or {}
    return float(costs.get("flops", 0.0))

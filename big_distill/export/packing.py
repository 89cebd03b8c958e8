"""A student in files that are read back and evaluated before their sizes are believed."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import shutil
import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import Config
from big_distill.data.pipeline import TrainPipeline
from big_distill.errors import ConfigError, RunError, nearest
from big_distill.export import executable, rounding
from big_distill.export.evaluation import evaluate_executables
from big_distill.export.executable import Executable
from big_distill.export.formats import FORMATS, Format
from big_distill.run_dir.environment import machine
from big_distill.run_dir.layout import PACK_FILE, read_config, read_json, write_json
from big_distill.terminal import say
from big_distill.training.evaluation import mesh_for, open_eval, open_split, student_of

TOLERANCE = 1e-3
"""How far the logits of a file in floats may be from the network's at most, in their standard deviations."""
ROUNDED_TOLERANCE = 0.25
"""How far on average, where the network rounds: a step more or less here is a step more or less from there on."""
_TRIAL_DIR = ".packing"
_NUM_TIMINGS = 50
_NUM_VIEWS = 256


def pack(
    workdir: pathlib.Path,
    formats: Sequence[str],
    step: str,
    split: str,
    data_dir: str | None = None,
    precision: str | None = None,
) -> list[dict[str, Any]]:
    """Writes files into a run directory, and pack.json about them and those of before.

    Args:
      workdir: the run directory.
      formats: of `FORMATS`.
      step: of the student: 'final', 'latest', 'best' or the number of a checkpoint.
      split: that the files are evaluated on.
      data_dir: where TFDS sets are, if not where the run had them.
      precision: of `rounding.PRECISIONS`, what the student is rounded to first; None: it stays as it is.

    Returns:
      For each file `format`, `precision`, `path`, `step`, `split`, `bytes`, `ratio` (to the weights, running statistics
      included, of `config.student` in float32), `nonzero` (parameters), `bits_per_weight`, `difference` (of its logits
      from the network's, in their standard deviations), `accuracy` and `agreement` (fractions, of the file as it was
      read back; None without labels, or without a teacher), `latency_ms` (median, one image), `machine` (that it was
      measured on) and `flops` (of one image).

    Raises:
      ConfigError: an unknown format or precision, or one whose extra is not installed.
      RunError: no such run or step; or a file that is not what was written into it.
    """
    formats = _checked(formats, precision)
    config = read_config(workdir)
    mesh = mesh_for(config)
    if data_dir:
        source, eval_source = (dataclasses.replace(s, data_dir=data_dir) for s in (config.source, config.evaluated_on))
        config = dataclasses.replace(config, source=source, eval_source=eval_source)
    student, views = student_of(workdir, step, mesh), functools.cache(functools.partial(_training_views, config))
    named = dataclasses.replace(student.architecture, model=config.student)
    num_weights = weights.num_params(named.abstract_variables())
    if precision:
        student = rounding.quantize(student, precision, views() if precision != "bfloat16" else np.zeros(0))
    data = open_eval(config, split)
    teacher = teachers.load(config, workdir, mesh, student.architecture.card.class_names)
    stem = "-".join(["student", *([step] if step != "final" else []), *([precision] if precision else [])])
    files = [stem + FORMATS[name].suffix for name in formats]
    trial = workdir / _TRIAL_DIR  # nothing takes the place of a good file before it was evaluated
    if jax.process_index() == 0:
        shutil.rmtree(trial, ignore_errors=True)  # of a pack that failed
        trial.mkdir()
    _together("ready to write")
    pixels = next(iter(data))["pixels"]
    wanted = executable.of_network(student).classify(pixels)
    decoded, differences = [], []
    for name, file in zip(formats, files, strict=True):
        if jax.process_index() == 0:
            FORMATS[name].write(trial / file, student, views)
            if FORMATS[name].is_executable:
                executable.write_card(trial / file, student.architecture)
        _together(f"wrote {file}")
        decoded.append(executable.read(trial / file))
        differences.append(_check(trial / file, FORMATS[name], student, decoded[-1].classify(pixels), wanted))
    what: dict[str, Any] = {"precision": precision, "step": step, "split": split}
    what |= {"nonzero": weights.num_nonzero(student.variables["params"]), "flops": _flops(student)}
    rows = []
    scores = evaluate_executables(decoded, teacher, data, mesh)
    for name, file, one, difference, own in zip(formats, files, decoded, differences, scores, strict=True):
        size = (trial / file).stat().st_size
        rows.append(
            {
                "format": name,
                "path": str(workdir / file),
                **what,
                "bytes": size,
                "ratio": 4 * num_weights / size,
                "bits_per_weight": 8 * size / num_weights,
                "difference": difference,
                "accuracy": own.get("accuracy"),
                "agreement": own.get("agreement"),
                "latency_ms": _latency(one, pixels[:1]),
                "machine": machine(),
            }
        )
    _together("evaluated")
    if jax.process_index() == 0:
        _put_in_place(workdir, trial, rows)
    _together("packed")
    return rows


def _checked(formats: Sequence[str], precision: str | None) -> list[str]:
    """The formats, each once, if all are known."""
    for flag, known, given in (
        ("--formats", list(FORMATS), formats),
        ("--quantize", list(rounding.PRECISIONS), [precision] if precision else []),
    ):
        for name in given:
            if name not in known:
                raise ConfigError(f"{flag}={','.join(given)}: {name!r} is not known{nearest(name, known)}")
    if not formats:
        raise ConfigError(f"--formats= is empty: expected some of {', '.join(FORMATS)}")
    return list(dict.fromkeys(formats))


def _together(what: str) -> None:
    """Waits for all processes."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _put_in_place(workdir: pathlib.Path, trial: pathlib.Path, rows: list[dict[str, Any]]) -> None:
    """Moves the files into the run directory, and writes their rows beside those of others."""
    table, ours = workdir / PACK_FILE, {row["path"] for row in rows}
    others = [row for row in (read_json(table, [{"path": str}]) if table.is_file() else []) if row["path"] not in ours]
    write_json(table, others)  # no row may be about a file that is another one now
    for file in sorted(trial.iterdir()):
        file.replace(workdir / file.name)
    trial.rmdir()
    write_json(table, others + rows)


def _training_views(config: Config) -> np.ndarray:
    """The first training views, uint8 [N, S, S, C], the same in every process."""
    data = TrainPipeline(config, open_split(config, config.source, config.source.train))
    batches = [data.batch(step)["pixels"] for step in range(-(-_NUM_VIEWS // config.batch_size))]
    return np.concatenate(batches)[:_NUM_VIEWS]


def _check(path: pathlib.Path, format_: Format, student: weights.Network, got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest difference of a file's logits on a batch from the network's, in standard deviations."""
    if not format_.is_executable:
        written = weights.load(path, student.architecture)
        if weights.sha256(written.variables) != weights.sha256(student.variables):
            raise RunError(f"{path} does not hold what was written into it: this is a bug, or a bad disk")
    differences = np.abs(got - wanted) / max(wanted.std(), 1e-30)
    rounds = student.architecture.model.activation_bits > 0
    found, allowed = (differences.mean(), ROUNDED_TOLERANCE) if rounds else (differences.max(), TOLERANCE)
    if not found <= allowed:
        raise RunError(
            f"{path} does not compute what it should: its logits differ by {found:.2g} of their standard deviation "
            f"from the network's, more than {allowed}"
        )
    say(f"{path.name}: {path.stat().st_size:,} bytes, read back; logits within {found:.1g} (allowed: {allowed})")
    return float(differences.max())


def _latency(one: Executable, image: np.ndarray) -> float:
    """Median milliseconds of one image."""
    times = []
    for _ in range(_NUM_TIMINGS + 1):
        began = time.perf_counter()
        one.classify(image)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def _flops(network: weights.Network) -> float:
    """Of one image, as XLA counts them."""
    architecture = network.architecture
    model = architecture.build("float32")

    def logits(variables: weights.Variables, image: jax.Array) -> jax.Array:
        return model.apply(variables, image, train=False)[0].logits

    image = jax.ShapeDtypeStruct(architecture.input_shape, np.float32)
    costs = jax.jit(logits).lower(network.variables, image).compile().cost_analysis() or {}
    return float(costs.get("flops", 0.0))

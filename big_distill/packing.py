"""A student in files that are read back and evaluated before their sizes are believed."""

from __future__ import annotations

import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from big_distill import sharding, weights
from big_distill.artifact import container
from big_distill.config import nearest
from big_distill.errors import ConfigError, RunError
from big_distill.evaluation import evaluate_run, student_of
from big_distill.metrics import say
from big_distill.workdir import PACK_FILE, write_json

_NUM_TIMINGS = 50


def pack(
    workdir: pathlib.Path, formats: Sequence[str], step: str, split: str, data_dir: str | None = None
) -> list[dict[str, Any]]:
    """Writes files into a run directory, and pack.json about them.

    Args:
      workdir: the run directory.
      formats: of `FORMATS`.
      step: of the student: 'final', 'latest', 'best' or the number of a checkpoint.
      split: that the files are evaluated on.
      data_dir: where TFDS sets are, if not where the run had them.

    Returns:
      For each file `format`, `path`, `step`, `split`, `bytes`, `ratio` (to its weights, running statistics included, in
      float32), `nonzero`, `bits_per_weight`,
      `accuracy` and `agreement` (fractions, of the decoded file; None without labels, or without a teacher),
      `latency_ms` (median, one image) and `flops` (of one image).

    Raises:
      ConfigError: an unknown format.
      RunError: no such run or step; or a file that was not read back as it was written.
    """
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--formats={','.join(formats)}: {name!r} is not known{nearest(name, list(FORMATS))}")
    student = student_of(workdir, step, sharding.make_mesh())
    wanted = weights.sha256(student.variables)
    rows = []
    for name in formats:
        suffix, write = FORMATS[name]
        path = (workdir / "student").with_suffix(suffix)
        write(path, weights.arrays_of(student))
        decoded = weights.load(path)
        if weights.sha256(decoded.variables) != wanted:
            raise RunError(f"{path} does not hold what was written into it: this is a bug, or a bad disk")
        scores = evaluate_run(workdir, split, data_dir=data_dir, packed=path)
        num_weights = weights.num_params(decoded.variables)
        latency, flops = _cost(decoded)
        size = path.stat().st_size
        rows.append(
            {
                "format": name,
                "path": str(path),
                "step": step,
                "split": split,
                "bytes": size,
                "ratio": 4 * num_weights / size,
                "nonzero": weights.num_nonzero(decoded.variables),
                "bits_per_weight": 8 * size / num_weights,
                "accuracy": scores.get("accuracy"),
                "agreement": scores.get("agreement"),
                "latency_ms": latency,
                "flops": flops,
            }
        )
        say(f"{path}: {size:,} bytes, read back and evaluated")
    if jax.process_index() == 0:
        write_json(workdir / PACK_FILE, rows)
    return rows


def _cost(network: weights.Network) -> tuple[float, float]:
    """(median milliseconds, FLOPs) of one image on one device."""
    architecture = network.architecture
    model = architecture.build("float32")
    image = np.zeros(architecture.input_shape, np.float32)

    def logits(variables: weights.Variables, image: jax.Array) -> jax.Array:
        return model.apply(variables, image, train=False)[0]

    variables = jax.device_put(network.variables)
    compiled = jax.jit(logits).lower(variables, image).compile()
    times = []
    for _ in range(_NUM_TIMINGS):
        began = time.perf_counter()
        jax.block_until_ready(compiled(variables, image))
        times.append(1e3 * (time.perf_counter() - began))
    costs = compiled.cost_analysis() or {}
    return statistics.median(times), float(costs.get("flops", 0.0))


def _write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    save_file(arrays, temporary)
    temporary.replace(path)


FORMATS: dict[str, tuple[str, Callable[[pathlib.Path, dict[str, np.ndarray]], None]]] = {
    "container": (container.SUFFIX, container.write),
    "safetensors": (".safetensors", _write_safetensors),
}

"""Measures how large a teacher's activations are, once on real images, and keeps that in the run directory."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from big_distill import models, weights
from big_distill.errors import ConfigError, RunError
from big_distill.models.int8 import Ranges
from big_distill.parallel import sharding
from big_distill.run_dir.layout import ACTIVATION_RANGES_FILE, read_json, write_json
from big_distill.step.views import for_network, to_unit


def measure(
    networks: Sequence[weights.Network], dtype: str, mesh: Mesh, batches: Sequence[Mapping[str, np.ndarray]]
) -> tuple[Ranges, ...]:
    """Measures the ranges of each network for `models.quantize`.

    Args:
      networks: networks as `networks.read` returns them.
      dtype: dtype of all that is not stored in integers.
      mesh: mesh of the run.
      batches: this process's part of each batch; only `pixels` are read.

    Raises:
      ConfigError: a network without a convolution that int8 is for.
    """
    return tuple(_ranges(network, dtype, mesh, batches) for network in networks)


def _ranges(
    network: weights.Network, dtype: str, mesh: Mesh, batches: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    architecture = network.architecture
    model = architecture.build(dtype, folded=True)
    folded = models.cast(architecture.fold(network.variables), dtype)
    variables = sharding.put(folded, sharding.replicated(mesh))

    def of_batch(variables: Any, pixels: jax.Array) -> dict[str, jax.Array]:
        return models.input_ranges(model, variables, for_network(to_unit(pixels), architecture.card))

    step = jax.jit(of_batch, out_shardings=sharding.replicated(mesh))
    ranges = [step(variables, **sharding.to_devices(mesh, {"pixels": batch["pixels"]})) for batch in batches]
    if not ranges[0]:
        able = ", ".join(name for name, family in models.FAMILIES.items() if family.int8)
        name = architecture.identity["name"]
        raise ConfigError(f"config.teacher.dtype='int8': {name} has no convolution for it; those of {able} have")
    return {name: max(float(values[name]) for values in ranges) for name in ranges[0]}


def read(workdir: pathlib.Path, identity: str) -> tuple[Ranges, ...] | None:
    """Reads the ranges that `write` kept of the teacher with this identity; None if there are none."""
    file = workdir / ACTIVATION_RANGES_FILE
    if not file.is_file():
        return None
    kept = read_json(file, {"teacher": str, "ranges": [dict]})
    if not all(type(top) is float and math.isfinite(top) for ranges in kept["ranges"] for top in ranges.values()):
        raise RunError(f"{file} holds no ranges; remove it and the run's own command makes it again")
    return tuple(kept["ranges"]) if kept["teacher"] == identity else None


def write(workdir: pathlib.Path, identity: str, ranges: Sequence[Ranges]) -> None:
    """Keeps ranges, so that a run has one teacher from its first session to its last."""
    write_json(workdir / ACTIVATION_RANGES_FILE, {"teacher": identity, "ranges": ranges})

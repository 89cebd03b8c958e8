"""How large a teacher's activations are: measured once on real images, kept in the run directory."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from big_distill import models, sharding, weights
from big_distill.config import Config
from big_distill.errors import ConfigError
from big_distill.models.quantization import Ranges
from big_distill.views import for_network, to_unit
from big_distill.workdir import CALIBRATION_FILE, read_json, write_json


def measure(
    networks: Sequence[weights.Network], config: Config, mesh: Mesh, batches: Sequence[Mapping[str, np.ndarray]]
) -> tuple[Ranges, ...]:
    """The ranges of each network for `models.quantize`.

    Args:
      networks: as `teacher.read` returns them.
      config: resolved.
      mesh: of the run.
      batches: this process's part of each; only `pixels` are read.

    Raises:
      ConfigError: a network without a convolution that int8 is for.
    """
    found = []
    for network in networks:
        architecture = network.architecture
        model = architecture.build(config.dtype, folded=True)
        variables = sharding.replicate(mesh, models.fold(architecture.model, network.variables, config.dtype))

        def of_batch(variables: Any, pixels: jax.Array, model: Any = model, card: Any = architecture.card) -> Any:
            return models.input_ranges(model, variables, for_network(to_unit(pixels), card))

        step = jax.jit(of_batch, out_shardings=sharding.replicated(mesh))
        ranges = [step(variables, **sharding.to_devices(mesh, {"pixels": batch["pixels"]})) for batch in batches]
        if not ranges[0]:
            raise ConfigError(
                f"config.teacher.dtype='int8': the model {architecture.model.name!r} has no convolution for it; "
                "those of bit, efficientnet_lite* and mobilenet_v3_large have"
            )
        found.append({name: max(float(values[name]) for values in ranges) for name in ranges[0]})
    return tuple(found)


def read(workdir: pathlib.Path, identity: str | None) -> tuple[Ranges, ...] | None:
    """What `write` kept of the teacher with this hash, else None."""
    file = workdir / CALIBRATION_FILE
    kept = read_json(file) if file.is_file() else {}
    return tuple(kept["ranges"]) if kept.get("teacher") == identity else None


def write(workdir: pathlib.Path, identity: str | None, ranges: Sequence[Ranges]) -> None:
    """Keeps ranges, so that a run has one teacher from its first session to its last."""
    write_json(workdir / CALIBRATION_FILE, {"teacher": identity, "ranges": ranges})

"""Any file that holds a network, as a function from pixels to logits."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from big_distill import weights
from big_distill.errors import RunError
from big_distill.export.formats import FORMATS
from big_distill.export.function import Classifier
from big_distill.run_dir.layout import read_json, write_json
from big_distill.step.views import for_network, to_unit


@dataclasses.dataclass(frozen=True)
class Executable:
    """A network with its preprocessing.

    classify: from uint8 pixels [B, S, S, C], any B above 0, to float32 logits [B, K], with S the size of the view.
    """

    architecture: weights.Architecture
    classify: Classifier


def of_network(network: weights.Network) -> Executable:
    """A network as JAX computes it here, in float32."""
    architecture = network.architecture
    model, variables = architecture.build("float32"), jax.device_put(network.variables)

    def logits(variables: weights.Variables, pixels: jax.Array) -> jax.Array:
        return model.apply(variables, for_network(to_unit(pixels), architecture.card), train=False)[0].logits

    compiled = jax.jit(logits)
    return Executable(architecture, lambda pixels: np.asarray(compiled(variables, pixels)))


def read(path: str | pathlib.Path) -> Executable:
    """The network of a run directory, a weight file or an exported file.

    Raises:
      RunError: no such file, or it is damaged.
    """
    file = pathlib.Path(path)
    reader = next((format_.read for format_ in FORMATS.values() if format_.suffix == file.suffix), None)
    if reader is None:
        return of_network(weights.load(path))
    values = check(file)
    return Executable(weights.from_json(json.dumps(values), card_of(file)), reader(file))


def check(file: pathlib.Path) -> dict[str, Any]:
    """What is beside an exported file, whose checksum is right.

    Raises:
      RunError: a file is missing, or damaged.
    """
    if not file.is_file():
        raise RunError(f"{file} does not exist")
    card = card_of(file)
    if not card.is_file():
        raise RunError(f"{card} does not exist: it says what {file.name} expects")
    values = read_json(card, {"sha256": str})
    if values.pop("sha256") != _sha256(file):
        raise RunError(f"{file} is damaged, or {card.name} is not its own: the checksum is wrong")
    return values


def write_card(file: pathlib.Path, architecture: weights.Architecture) -> None:
    """Writes what an exported file expects, and its checksum, beside it."""
    write_json(card_of(file), {**dataclasses.asdict(architecture), "sha256": _sha256(file)})


def card_of(file: pathlib.Path) -> pathlib.Path:
    """The file beside an exported one that says what it expects."""
    return file.with_name(file.name + ".json")


def _sha256(file: pathlib.Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()

"""Any file that holds a network, as a function from pixels to logits."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from big_distill import weights
from big_distill.errors import RunError
from big_distill.export import litert, onnx_graph, stablehlo
from big_distill.export.program import Classifier
from big_distill.views import for_network, to_unit

READERS: dict[str, Callable[[pathlib.Path], Classifier]] = {
    ".onnx": onnx_graph.read,
    ".stablehlo": stablehlo.read,
    ".tflite": litert.read,
}
"""Of files that hold a program; what it expects is in FILE.json beside it, as `weights.write_card` writes it."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A network with its preprocessing.

    classify: from uint8 pixels [B, S, S, C], any B above 0, to float32 logits [B, K], with S the size of the view.
    """

    architecture: weights.Architecture
    classify: Classifier


def of_network(network: weights.Network) -> Program:
    """A network as JAX computes it here, in float32."""
    architecture = network.architecture
    model, variables = architecture.build("float32"), jax.device_put(network.variables)

    def logits(variables: weights.Variables, pixels: jax.Array) -> jax.Array:
        return model.apply(variables, for_network(to_unit(pixels), architecture.card), train=False)[0]

    compiled = jax.jit(logits)
    return Program(architecture, lambda pixels: np.asarray(compiled(variables, pixels)))


def read(path: str | pathlib.Path) -> Program:
    """The network of a run directory, a weight file or an exported program.

    Raises:
      RunError: no such file, or it is damaged.
    """
    file = pathlib.Path(path)
    reader = READERS.get(file.suffix)
    if reader is None:
        return of_network(weights.load(path))
    if not file.is_file():
        raise RunError(f"{file} does not exist")
    return Program(weights.read_card(card_of(file)), reader(file))


def card_of(file: pathlib.Path) -> pathlib.Path:
    """The file beside an exported program that says what it expects."""
    return file.with_name(file.name + ".json")

"""The formats that a student is packed into: how their files are named, who writes them and who reads them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np
from safetensors.numpy import save

from big_distill import weights
from big_distill.export import litert, onnx_graph, stablehlo
from big_distill.export.function import Classifier
from big_distill.files import atomic
from big_distill.weights import container

Views = Callable[[], np.ndarray]
"""Makes training views, uint8 [N, S, S, C], for a format that measures the ranges of activations."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of files.

    suffix: of the file's name.
    write: `(path, network, views)`: writes the file, whole or not at all.
    read: makes a function from pixels to logits of an executable file; None if the file holds weights and a card, which
      `weights.load` reads.
    """

    suffix: str
    write: Callable[[pathlib.Path, weights.Network, Views], None]
    read: Callable[[pathlib.Path], Classifier] | None = None

    @property
    def is_executable(self) -> bool:
        """Whether the file is a program, which runs without this library."""
        return self.read is not None


def _write_container(path: pathlib.Path, network: weights.Network, _: Views) -> None:
    container.write(path, weights.contents(network))


def _write_safetensors(path: pathlib.Path, network: weights.Network, _: Views) -> None:
    atomic.write(path, save(weights.contents(network)))


def _write_onnx(path: pathlib.Path, network: weights.Network, _: Views) -> None:
    onnx_graph.write(path, network)


def _write_stablehlo(path: pathlib.Path, network: weights.Network, _: Views) -> None:
    stablehlo.write(path, network)


def _write_tflite(path: pathlib.Path, network: weights.Network, views: Views) -> None:
    """Writes integers where the network's inputs are rounded; the converter measures their ranges anew."""
    if network.architecture.model.activation_bits:
        litert.write_int8(path, weights.with_input_ranges(network, 0), views())
    else:
        litert.write(path, network)


FORMATS = {
    "container": Format(container.SUFFIX, _write_container),
    "safetensors": Format(".safetensors", _write_safetensors),
    "tflite": Format(".tflite", _write_tflite, litert.read),
    "onnx": Format(".onnx", _write_onnx, onnx_graph.read),
    "stablehlo": Format(".stablehlo", _write_stablehlo, stablehlo.read),
}
EXECUTABLE_SUFFIXES = tuple(format_.suffix for format_ in FORMATS.values() if format_.is_executable)

"""Lists the formats that a student is packed into: the suffix, the writer and the reader of each.

An executable file has a card beside it, FILE.json. The card holds the file's checksum, and says what the file expects:
`input` says it to other programs, and this library reads the rest.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable

from safetensors.numpy import save

from big_distill import weights
from big_distill.errors import RunError
from big_distill.export import litert, onnx_graph, stablehlo
from big_distill.export.function import LITERT, ONNX, Classifier, Extra, Views, input_of
from big_distill.files import atomic, checksums
from big_distill.run_dir.layout import read_json, write_json
from big_distill.weights import container


@dataclasses.dataclass(frozen=True)
class Format:
    """Describes a format of files, whose names end in `suffix`.

    write: `(path, network, views)`, writes the file, whole or not at all; a format that measures ranges calls `views`.
    read: makes a function from pixels to logits from an executable file; None if the file holds weights and a card,
      which `weights.load` reads.
    extra: what both need, if they need more than this package does.
    """

    suffix: str
    write: Callable[[pathlib.Path, weights.Network, Views], None]
    read: Callable[[pathlib.Path], Classifier] | None = None
    extra: Extra | None = None


def _write_tflite(path: pathlib.Path, network: weights.Network, views: Views) -> None:
    """Writes integers if the network rounds its inputs, else floats; the ranges of integers are measured anew."""
    if network.architecture.model.activation_bits:
        litert.write_int8(path, weights.with_input_ranges(network, 0), views())
    else:
        litert.write(path, network)


FORMATS = {
    "container": Format(container.SUFFIX, lambda path, network, _: container.write(path, weights.contents(network))),
    "safetensors": Format(".safetensors", lambda path, network, _: atomic.write(path, save(weights.contents(network)))),
    "tflite": Format(".tflite", _write_tflite, litert.read, LITERT),
    "onnx": Format(".onnx", lambda path, network, _: onnx_graph.write(path, network), onnx_graph.read, ONNX),
    "stablehlo": Format(".stablehlo", lambda path, network, _: stablehlo.write(path, network), stablehlo.read),
}
EXECUTABLE_SUFFIXES = tuple(format_.suffix for format_ in FORMATS.values() if format_.read)


def write_card(file: pathlib.Path, architecture: weights.ConfigArchitecture) -> None:
    """Writes the card of an executable file."""
    card = {**architecture.to_json(), "input": input_of(architecture), "sha256": checksums.sha256(file)}
    write_json(_card_of(file), card)


def read_card(file: pathlib.Path) -> weights.ConfigArchitecture:
    """Reads the architecture of an executable file from its card and checks the file's checksum.

    Raises:
      RunError: the file or its card is missing or damaged.
    """
    if not file.is_file():
        raise RunError(f"{file} does not exist")
    card = _card_of(file)
    if not card.is_file():
        raise RunError(f"{card} does not exist: it says what {file.name} expects")
    values = read_json(card, {"sha256": str})
    if values.pop("sha256") != checksums.sha256(file):
        raise RunError(f"{file} is damaged, or {card.name} is not its own: the checksum is wrong")
    values.pop("input", None)  # it follows from the rest, and older files do not have it
    return weights.from_json(json.dumps(values), card)


def _card_of(file: pathlib.Path) -> pathlib.Path:
    return file.with_name(file.name + ".json")

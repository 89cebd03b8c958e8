"""Writes ONNX files from the jaxpr of a network, and reads them: all networks share a writer, see `onnx_primitives`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from big_distill import weights
from big_distill.errors import RunError
from big_distill.export import onnx_primitives
from big_distill.export.function import ONNX, Classifier, check_pixels, pixels_shape, pixels_to_logits
from big_distill.export.interpreter import bind, interpret, type_of
from big_distill.export.onnx_builder import BATCH, INPUT, Builder, Tensor, Value, has_batch
from big_distill.files import atomic

OPSET, IR_VERSION = 17, 8
"""Versions of 2022: ONNX Runtime 1.12, TensorRT 8.6 and OpenVINO 2022.2 read them; no rule needs a newer one."""
OUTPUT = "logits"


def write(path: pathlib.Path, network: weights.Network) -> None:
    """Writes a network with its preprocessing, whole or not at all.

    The input is `pixels`, the output `logits`. The metadata `card` has `image_size` and `class_names` as JSON.

    Raises:
      ConfigError: the extra is not installed.
      RunError: the network has a primitive that is not in `onnx_primitives`.
    """
    shape = pixels_shape(network.architecture)
    card = {"image_size": shape[0], "class_names": network.architecture.card.class_names}
    atomic.write(path, model(pixels_to_logits(network), shape, card).SerializeToString())


def read(path: pathlib.Path) -> Classifier:
    """Reads what `write` wrote. ONNX Runtime runs the file on the CPU.

    Raises:
      ConfigError: the extra is not installed.
      RunError: no such file, or not one of these.
    """
    with ONNX:
        import onnxruntime
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        (pixels,) = session.get_inputs()
        shape = tuple(pixels.shape[1:])
    except Exception as error:  # ONNX Runtime's errors have no class in common
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path} is not an ONNX file that runs here: {reason}") from error

    def classify(pixels: np.ndarray) -> np.ndarray:
        check_pixels(pixels, shape)
        (logits,) = session.run([OUTPUT], {INPUT: pixels})
        return np.asarray(logits)

    return classify


def model(function: Callable[[jax.Array], jax.Array], shape: Sequence[int], card: Any) -> Any:
    """Builds the ModelProto of a function of uint8 pixels [B, *shape], for any B; raises what `write` raises."""
    builder, pixels = Builder(), Tensor(INPUT, (BATCH, *shape), tuple(range(len(shape) + 1)))
    onnx = builder.onnx

    def evaluate(eqn: core.JaxprEqn, values: list[Value]) -> Sequence[Value]:
        """Computes what does not depend on the pixels, and writes the rest."""
        if any(isinstance(x, Tensor) for x in values) or any(has_batch(type_of(var).shape) for var in eqn.outvars):
            return [onnx_primitives.write(builder, eqn, values)]
        return [np.asarray(x) for x in bind(eqn, values)]

    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((BATCH, *shape), jnp.uint8))
    (logits,) = interpret(closed.jaxpr, closed.consts, [pixels], evaluate)
    (aval,) = closed.out_avals
    identity = onnx.helper.make_node("Identity", [builder.plain(logits)], [OUTPUT])
    graph = onnx.helper.make_graph(
        [*builder.nodes, identity],
        "big_distill",
        [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["batch", *shape])],
        [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", *aval.shape[1:]])],
        [onnx.numpy_helper.from_array(array, name) for name, array in builder.constants.items()],
    )
    proto = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="big_distill"
    )
    onnx.helper.set_model_props(proto, {"card": json.dumps(card)})
    onnx.checker.check_model(proto, full_check=True)
    return proto

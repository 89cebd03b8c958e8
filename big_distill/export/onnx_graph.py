"""ONNX, from the jaxpr of a network: one writer for all of them, see `onnx_primitives`."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from big_distill import weights
from big_distill.errors import ConfigError, RunError
from big_distill.export import onnx_primitives
from big_distill.export.function import Classifier, check_pixels, pixels_shape, pixels_to_logits
from big_distill.export.interpreter import bind, interpret, type_of
from big_distill.export.onnx_builder import BATCH, INPUT, Builder, Tensor, Value, has_batch
from big_distill.files import atomic

OPSET, IR_VERSION = 17, 8
"""Of 2022: ONNX Runtime 1.12, TensorRT 8.6 and OpenVINO 2022.2 read them already, and nothing newer is needed."""
OUTPUT = "logits"
_MISSING = "ONNX files need the extra onnx: pip install 'big_distill[onnx]'"


def write(path: pathlib.Path, network: weights.Network) -> None:
    """Writes a network with its preprocessing, whole or not at all.

    Its input is `pixels`, its output `logits`; the metadata `card` has `image_size` and `class_names` as JSON.

    Raises:
      ConfigError: the extra is not installed.
      RunError: the network has a primitive that is not in `onnx_primitives`.
    """
    shape = pixels_shape(network)
    card = {"image_size": shape[0], "class_names": network.architecture.card.class_names}
    atomic.write(path, model(pixels_to_logits(network), shape, card).SerializeToString())


def read(path: pathlib.Path) -> Classifier:
    """What `write` wrote, run by ONNX Runtime on the CPU.

    Raises:
      ConfigError: the extra is not installed.
      RunError: no such file, or not one of these.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        (pixels,) = session.get_inputs()
        shape = tuple(pixels.shape[1:])
    except Exception as error:  # its errors have no class in common
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path} is not an ONNX file that runs here: {reason}") from error

    def classify(pixels: np.ndarray) -> np.ndarray:
        check_pixels(pixels, shape)
        (logits,) = session.run([OUTPUT], {INPUT: pixels})
        return np.asarray(logits)

    return classify


def model(function: Callable[[jax.Array], jax.Array], shape: Sequence[int], card: Any) -> Any:
    """The ModelProto of a function of uint8 pixels [B, *shape], for any B.

    Raises:
      ConfigError: the extra is not installed.
      RunError: the function has a primitive that is not in `onnx_primitives`.
    """
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((BATCH, *shape), jnp.uint8))
    builder = Builder()
    pixels = builder.input((BATCH, *shape))
    (logits,) = interpret(closed.jaxpr, closed.consts, [pixels], functools.partial(_evaluate, builder))
    output = builder.plain(logits)

    def attribute(value: Any) -> Any:
        return onnx.helper.np_dtype_to_tensor_dtype(value) if isinstance(value, np.dtype) else value

    nodes = [
        onnx.helper.make_node(
            node.op, node.inputs, [node.output], **{k: attribute(v) for k, v in node.attributes.items()}
        )
        for node in builder.nodes
    ]
    nodes.append(onnx.helper.make_node("Identity", [output], [OUTPUT]))
    (aval,) = closed.out_avals
    graph = onnx.helper.make_graph(
        nodes,
        "big_distill",
        [onnx.helper.make_tensor_value_info(INPUT, onnx.TensorProto.UINT8, ["batch", *shape])],
        [onnx.helper.make_tensor_value_info(OUTPUT, onnx.TensorProto.FLOAT, ["batch", *aval.shape[1:]])],
        [onnx.numpy_helper.from_array(array, name) for name, array in builder.constants.items()],
    )
    proto = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="big_distill",
    )
    onnx.helper.set_model_props(proto, {"card": json.dumps(card)})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _evaluate(builder: Builder, eqn: core.JaxprEqn, values: list[Value]) -> Sequence[Value]:
    """Computes what does not depend on the pixels, and writes the rest."""
    if any(isinstance(x, Tensor) for x in values) or any(has_batch(type_of(var).shape) for var in eqn.outvars):
        return [onnx_primitives.write(builder, eqn, values)]
    return [np.asarray(x) for x in bind(eqn, values)]

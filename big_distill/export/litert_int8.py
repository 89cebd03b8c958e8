"""A LiteRT model in floats, as integers: the ranges of its tensors on real images, then TensorFlow's quantiser.

The ranges are found here, for TensorFlow 2.21 takes wrong ones: it looks at the inputs of an operation after that has
run, and additions and products may by then have overwritten them. A squeeze-excite on a map of one pixel was all zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Range = tuple[float, float]


def quantized(model: bytes, images: np.ndarray) -> bytes:
    """The model with kernels in int8 with a scale for each filter, and everything else with one for each tensor.

    Jacob et al. 2018 (arXiv 1712.05877).

    Args:
      model: of one image in float32.
      images: float32 [N, S, S, C].

    Returns:
      The model of one image in uint8, whose output is int8.
    """
    import tensorflow as tf
    from tensorflow.lite.python import convert, schema_py_generated, util
    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    for index, (low, high) in _ranges(model, images).items():
        tensor = content.subgraphs[0].tensors[index]
        tensor.quantization = tensor.quantization or schema_py_generated.QuantizationParametersT()
        tensor.quantization.min, tensor.quantization.max = [low], [high]
    integers = convert.mlir_quantize(bytes(flatbuffer_utils.convert_object_to_bytearray(content)))
    return bytes(util.modify_model_io_type(integers, tf.uint8, tf.int8))


def _ranges(model: bytes, images: np.ndarray) -> dict[int, Range]:
    """The smallest and the largest value of every tensor that is computed, and of the input, by its index."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model,
        experimental_preserve_all_tensors=True,  # none overwrites another
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    (pixels,) = interpreter.get_input_details()
    outputs = [int(index) for operation in interpreter._get_ops_details() for index in operation["outputs"]]
    ranges: dict[int, Range] = {}
    for image in images:
        interpreter.set_tensor(pixels["index"], image[None])
        interpreter.invoke()
        for index in (int(pixels["index"]), *outputs):
            value = interpreter.get_tensor(index)
            low, high = ranges.get(index, (np.inf, -np.inf))
            ranges[index] = min(low, float(value.min())), max(high, float(value.max()))
    return ranges


def _erfc(x: jax.Array, **_: Any) -> jax.Array:
    """By tanh, to 5e-4, as GELU is often computed: the terms of the exact one's polynomials do not fit into int8."""
    return 1 - jnp.tanh(2 / np.sqrt(np.pi, dtype=np.float32) * (x + 0.08943 * x**3))


def _max_pool(x: jax.Array, *, window_dimensions: Any, window_strides: Any, padding: Any, **_: Any) -> jax.Array:
    """Padded with the pixels at the edge, which changes no maximum: int8 has no -inf."""
    x = jnp.pad(x, padding, mode="edge")
    return lax.reduce_window(x, -jnp.inf, lax.max, window_dimensions, window_strides, "VALID")


def _neg(x: jax.Array) -> jax.Array:
    """As a product: LiteRT negates floats alone."""
    return x * -1


SUBSTITUTES: dict[str, Callable[..., jax.Array]] = {"erfc": _erfc, "neg": _neg, "reduce_window_max": _max_pool}
"""Primitives that cannot be had in int8, by others."""

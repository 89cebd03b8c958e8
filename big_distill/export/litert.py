"""Writes and reads LiteRT files, formerly TensorFlow Lite: in floats, or in 8-bit integers alone.

JAX lowers a network to StableHLO, and TensorFlow's converter makes the file from it. A file takes one image at a time.
With a symbolic batch size the converter would compute shapes at run time and fuse nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from big_distill import weights
from big_distill.errors import RunError
from big_distill.export.function import LITERT, Classifier, check_pixels, pixels_shape, pixels_to_logits
from big_distill.export.interpreter import bind, interpret
from big_distill.files import atomic
from big_distill.terminal import silent

Function = Callable[[jax.Array], jax.Array]
Substitutes = Mapping[str, Callable[..., jax.Array]]
"""Maps a primitive of JAX that LiteRT lacks to others that it has: from its inputs and parameters to its output."""

_P = (
    *(-2.72614226e-10, 2.77068142e-08, -2.10102402e-06, -5.69250640e-05),
    *(-7.34990631e-04, -2.95459981e-03, -1.60960333e-02),
)
_Q = (-1.45660718e-05, -2.13374056e-04, -1.68282697e-03, -7.37332917e-03, -1.42647391e-02)


def write(path: pathlib.Path, network: weights.Network) -> None:
    """Writes a network with its preprocessing, whole or not at all.

    The file maps uint8 pixels [1, S, S, C] to float32 logits [1, K].

    Raises:
      ConfigError: the extra is not installed.
      RunError: the converter has no operations for this network.
    """
    function, shape = _substituted(pixels_to_logits(network), _IN_FLOATS), pixels_shape(network.architecture)
    with silent():
        atomic.write(path, _converted(function, shape, np.uint8))


def write_int8(path: pathlib.Path, network: weights.Network, pixels: np.ndarray) -> None:
    """Writes a network in floats as one that computes in 8-bit integers, whole or not at all.

    The file maps uint8 pixels [1, S, S, C] to int8 steps of logits [1, K].

    Args:
      pixels: uint8 [N, S, S, C], about a hundred images to measure the ranges of activations on.

    Raises:
      ConfigError, RunError: as in `write`.
      DataError: pixels of another dtype or shape.
    """
    function, shape = _substituted(pixels_to_logits(network), _IN_INT8), pixels_shape(network.architecture)
    check_pixels(pixels, shape)
    images = pixels.astype(np.float32)
    images[0].flat[:2] = 0, 255  # the range [0, 255] makes one step of the input one byte value
    with silent():
        atomic.write(path, _quantized(_converted(function, shape, np.float32), images))


def read(path: pathlib.Path) -> Classifier:
    """Reads what `write` or `write_int8` wrote. The file runs on the CPU, image by image.

    Raises:
      ConfigError: the extra is not installed.
      RunError: no such file, or not one of these.
    """
    with LITERT:
        from ai_edge_litert.interpreter import Interpreter
    try:
        with silent():
            interpreter = Interpreter(model_content=path.read_bytes(), num_threads=os.cpu_count())
            interpreter.allocate_tensors()
        (pixels,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    except Exception as error:  # OSError, ValueError, RuntimeError, errors of its parser
        raise RunError(f"{path} is not a LiteRT file that runs here: {_first_line(error)}") from error
    shape = tuple(map(int, pixels["shape"][1:]))
    scale, zero_point = logits["quantization"]  # the scale is 0 in a file of floats

    def classify(images: np.ndarray) -> np.ndarray:
        check_pixels(images, shape)
        rows = []
        for image in images:
            interpreter.set_tensor(pixels["index"], image[None])
            interpreter.invoke()
            rows.append(interpreter.get_tensor(logits["index"])[0])
        steps = np.stack(rows).astype(np.float32)
        return (steps - np.float32(zero_point)) * np.float32(scale) if scale else steps

    return classify


def _converted(function: Function, shape: tuple[int, int, int], dtype: Any) -> bytes:
    """Converts a function of pixels [1, *shape] to the bytes of a LiteRT model."""
    with LITERT:
        import tensorflow as tf
    from jax.experimental import jax2tf

    with contextlib.suppress(RuntimeError):  # TensorFlow has started already
        tf.config.set_visible_devices([], "GPU")  # JAX uses their memory
    module = tf.Module()
    pixels = tf.TensorSpec((1, *shape), dtype, name="pixels")
    module.logits = tf.function(jax2tf.convert(function, with_gradient=False), [pixels], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.logits.get_concrete_function()], module)
    try:
        return bytes(converter.convert())
    except Exception as error:  # mostly a ConverterError
        raise RunError(f"this network cannot be written for LiteRT: {_first_line(error)}") from error


def _substituted(function: Function, substitutes: Substitutes) -> Function:
    """Returns the function with some of its primitives replaced, for no platform in particular."""

    def evaluate(eqn: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
        if eqn.primitive.name in substitutes:
            return [substitutes[eqn.primitive.name](*values, **eqn.params)]
        return bind(eqn, values)

    def substituted(pixels: jax.Array) -> jax.Array:
        closed = jax.make_jaxpr(function)(pixels)
        (logits,) = interpret(closed.jaxpr, closed.consts, [pixels], evaluate)
        return jnp.asarray(logits)

    return substituted


def _erf(x: jax.Array, **_: Any) -> jax.Array:
    """Computes erf as Eigen's x P(x^2) / Q(x^2), to 4e-7; the converter does not know StableHLO's erf."""
    x = jnp.clip(x, -4, 4)
    p, q = (functools.reduce(lambda total, factor: total * x**2 + factor, factors) for factors in (_P, _Q))
    return x * p / q


def _erf_in_int8(x: jax.Array, **_: Any) -> jax.Array:
    """Computes erf by tanh, to 5e-4, as many GELUs do; the terms of `_erf`'s polynomials do not fit into int8."""
    return jnp.tanh(2 / np.sqrt(np.pi, dtype=np.float32) * (x + 0.08943 * x**3))


def _max_pool_in_int8(
    x: jax.Array, *, window_dimensions: Any, window_strides: Any, padding: Any, **_: Any
) -> jax.Array:
    """Computes a max-pool that pads with the pixels at the edge; they change no maximum, and int8 has no -inf."""
    x = jnp.pad(x, padding, mode="edge")
    return lax.reduce_window(x, -jnp.inf, lax.max, window_dimensions, window_strides, "VALID")


_IN_FLOATS: Substitutes = {"erf": _erf, "erfc": lambda x, **_: 1 - _erf(x)}
_IN_INT8: Substitutes = {
    "erf": _erf_in_int8,
    "erfc": lambda x, **_: 1 - _erf_in_int8(x),
    "neg": lambda x: x * -1,  # LiteRT negates floats alone
    "reduce_window_max": _max_pool_in_int8,
}


def _quantized(model: bytes, images: np.ndarray) -> bytes:
    """Converts a model of a float32 image to int8: uint8 image, int8 output (Jacob et al. 2018, arXiv 1712.05877).

    A kernel has one scale a filter. Any other tensor has one scale, from its range on `images`, float32 [N, S, S, C].
    This function measures the ranges itself, because TensorFlow 2.21 measures wrong ones. TensorFlow reads the inputs
    of an operation after the operation has run, when additions and products may have overwritten them. A squeeze-excite
    on a map of one pixel was all zeros.
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


def _ranges(model: bytes, images: np.ndarray) -> dict[int, tuple[float, float]]:
    """Measures the smallest and the largest value of the input and of every computed tensor, by its index."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model,
        experimental_preserve_all_tensors=True,  # no tensor overwrites another
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    (pixels,) = interpreter.get_input_details()
    outputs = [int(index) for operation in interpreter._get_ops_details() for index in operation["outputs"]]
    ranges: dict[int, tuple[float, float]] = {}
    for image in images:
        interpreter.set_tensor(pixels["index"], image[None])
        interpreter.invoke()
        for index in (int(pixels["index"]), *outputs):
            value = interpreter.get_tensor(index)
            low, high = ranges.get(index, (np.inf, -np.inf))
            ranges[index] = min(low, float(value.min())), max(high, float(value.max()))
    return ranges


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

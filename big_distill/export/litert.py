"""LiteRT, formerly TensorFlow Lite: in floats, or in 8-bit integers alone.

From JAX through StableHLO to TensorFlow's converter. A file is for one image at a time: with a symbolic batch size the
converter computes shapes at run time, and fuses nothing.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from big_distill import weights
from big_distill.errors import ConfigError, RunError
from big_distill.export import litert_int8
from big_distill.export.function import Classifier, check_pixels, pixels_shape, pixels_to_logits
from big_distill.export.interpreter import bind, interpret
from big_distill.export.litert_substitutes import IN_FLOATS, IN_INT8, Substitutes
from big_distill.files import atomic

Function = Callable[[jax.Array], jax.Array]

_MISSING = "LiteRT files need the extra tf: pip install 'big_distill[tf]'"


def write(path: pathlib.Path, network: weights.Network) -> None:
    """Writes a network with its preprocessing, whole or not at all: uint8 pixels [1, S, S, C] to float32 logits [1, K].

    Raises:
      ConfigError: the extra is not installed.
      RunError: the converter has no operations for this network.
    """
    with _quiet():
        atomic.write(
            path, _converted(_substituted(pixels_to_logits(network), IN_FLOATS), pixels_shape(network), np.uint8)
        )


def write_int8(path: pathlib.Path, network: weights.Network, pixels: np.ndarray) -> None:
    """Writes a network that computes in 8-bit integers: uint8 pixels [1, S, S, C] to int8 steps of logits [1, K].

    Args:
      path: whole or not at all.
      network: in floats.
      pixels: uint8 [N, S, S, C]: a hundred images or so that the ranges of activations are taken from.

    Raises:
      ConfigError: the extra is not installed.
      DataError: other pixels.
      RunError: the converter has no operations for this network.
    """
    check_pixels(pixels, pixels_shape(network))
    images = pixels.astype(np.float32)
    images[0].flat[:2] = 0, 255  # so that one step of the input is one of its bytes
    with _quiet():
        function = _substituted(pixels_to_logits(network), IN_INT8)
        model = _converted(function, pixels_shape(network), np.float32)
        atomic.write(path, litert_int8.quantized(model, images))


def read(path: pathlib.Path) -> Classifier:
    """What `write` or `write_int8` wrote, run on the CPU image by image.

    Raises:
      ConfigError: the extra is not installed.
      RunError: no such file, or not one of these.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    try:
        with _quiet():
            interpreter = Interpreter(model_content=path.read_bytes(), num_threads=os.cpu_count())
            interpreter.allocate_tensors()
        (pixels,), (logits,) = interpreter.get_input_details(), interpreter.get_output_details()
    except Exception as error:  # OSError, ValueError, RuntimeError and what its parser raises
        raise RunError(f"{path} is not a LiteRT file that runs here: {_first_line(error)}") from error
    shape = tuple(map(int, pixels["shape"][1:]))
    scale, zero_point = logits["quantization"]  # the scale is 0 in floats

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
    """The model of a function of pixels [1, *shape]."""
    tf = _tensorflow()
    from jax.experimental import jax2tf

    module = tf.Module()
    module.program = tf.function(
        jax2tf.convert(function, with_gradient=False),
        [tf.TensorSpec((1, *shape), dtype, name="pixels")],
        autograph=False,
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.program.get_concrete_function()], module)
    try:
        return bytes(converter.convert())
    except Exception as error:  # a ConverterError, mostly
        raise RunError(f"this network cannot be written for LiteRT: {_first_line(error)}") from error


def _substituted(function: Function, substitutes: Substitutes) -> Function:
    """The function with some of its primitives computed in another way, for no platform in particular."""

    def evaluate(eqn: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
        if eqn.primitive.name in substitutes:
            return [substitutes[eqn.primitive.name](*values, **eqn.params)]
        return bind(eqn, values)

    def substituted(pixels: jax.Array) -> jax.Array:
        closed = jax.make_jaxpr(function)(pixels)
        (logits,) = interpret(closed.jaxpr, closed.consts, [pixels], evaluate)
        return jnp.asarray(logits)

    return substituted


def _tensorflow() -> Any:
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ConfigError(_MISSING) from error
    with contextlib.suppress(RuntimeError):  # it has begun already
        tf.config.set_visible_devices([], "GPU")  # their memory is JAX's
    return tf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TensorFlow's libraries tell about themselves from standard error."""
    sys.stderr.flush()
    saved = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

"""Writes and reads StableHLO files through `jax.export`: one file for CPU, GPU and TPU and for every batch size.

Other software reads it with `jax.export.deserialize`. JAX promises to read it for six months after it was written.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from big_distill import weights
from big_distill.errors import RunError
from big_distill.export.function import Classifier, check_pixels, pixels_shape, pixels_to_logits
from big_distill.files import atomic


def write(path: pathlib.Path, network: weights.Network) -> None:
    """Writes a network with its preprocessing, whole or not at all."""
    logits = pixels_to_logits(network)

    def logits_of_one(image: jax.Array) -> jax.Array:
        return logits(image[None])[0]

    # Networks may ask for len(x), and it cannot be symbolic. They see one image, and vmap makes a batch of it.
    (batch,) = export.symbolic_shape("batch")
    pixels = jax.ShapeDtypeStruct((batch, *pixels_shape(network.architecture)), jnp.uint8)
    exported = export.export(jax.jit(jax.vmap(logits_of_one)), platforms=("cpu", "cuda", "tpu"))(pixels)
    atomic.write(path, bytes(exported.serialize()))


def read(path: pathlib.Path) -> Classifier:
    """Reads what `write` wrote. It runs on this machine's accelerator, and JAX compiles it once for each batch size.

    Raises:
      RunError: no such file, or not one of these.
    """
    try:
        exported = export.deserialize(bytearray(path.read_bytes()))
        (pixels,) = exported.in_avals
        shape = pixels.shape[1:]
        logits = jax.jit(exported.call)
        logits.lower(jax.ShapeDtypeStruct((1, *shape), pixels.dtype))  # parses the StableHLO itself
    except Exception as error:  # its parsers raise errors of many types
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path} is not a StableHLO file that this JAX reads: {reason}") from error

    def classify(pixels: np.ndarray) -> np.ndarray:
        check_pixels(pixels, shape)
        return np.asarray(logits(pixels))

    return classify

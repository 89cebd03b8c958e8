"""Rounds the convolutions of a folded network to 8 bits: measures their inputs, makes integers of their kernels.

The rounding is symmetric and static, after Jacob et al. 2018, "Quantization and training of neural networks for
efficient integer-arithmetic-only inference" (arXiv 1712.05877), and Krishnamoorthi 2018 (arXiv 1806.08342). The input
of a convolution has one scale, taken from real images, and each of its filters has one. The first convolution,
depthwise ones and dense layers keep their floats: they are small, and rounding costs them most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill.models.layers import ConvNorm, Kernel, StdConv
from big_distill.models.variants import kernel_applications
from big_distill.state import Model

Ranges = dict[str, float]
"""Maps a convolution, by its path such as block1/unit01/conv1, to the size of input that the integer 127 stands for."""


def input_ranges(model: Model, variables: Any, image: jax.Array) -> dict[str, jax.Array]:
    """Measures how large the inputs of a network's convolutions are.

    Args:
      model: a folded network.
      variables: variables that `fold` returned.
      image: [B, H, W, C], normalised.

    Returns:
      The largest |x| of the input of each convolution that `quantize` is for, float32 [].
    """

    def wanted(layer: Kernel, x: jax.Array) -> bool:
        dense = isinstance(layer, StdConv) or (isinstance(layer, ConvNorm) and not layer.depthwise)
        return dense and x.shape != image.shape  # not the first convolution

    applied = kernel_applications(model, variables, image, wanted)
    return {name: jnp.abs(x).max().astype(jnp.float32) for name, (x, _) in applied.items()}


def quantize(variables: Mapping[str, Any], ranges: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds the named convolutions to integers: kernel int8, kernel_scale float32 [F], input_scale [].

    Args:
      variables: variables that `fold` returned, or their ShapeDtypeStructs.
      ranges: ranges of some of its convolutions, see `Ranges`; with abstract variables the names alone are read.

    Raises:
      ValueError: a range of a layer that is no convolution.
    """
    unknown = set(ranges)

    def walk(params: Any, path: str) -> Any:
        if not isinstance(params, Mapping):
            return params
        if path in ranges and np.ndim(params.get("kernel", 0)) == 4:
            unknown.remove(path)
            return {**params, **_integers(params["kernel"], ranges[path])}
        return {name: walk(child, f"{path}/{name}".lstrip("/")) for name, child in params.items()}

    params = walk(variables["params"], "")
    if unknown:
        raise ValueError(f"these layers are no convolutions: {', '.join(sorted(unknown))}")
    return {**variables, "params": params}


def _integers(kernel: Any, top: float) -> dict[str, Any]:
    """Computes the parameters of a convolution whose input reaches `top`."""
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return {
            "kernel": jax.ShapeDtypeStruct(kernel.shape, jnp.int8),
            "kernel_scale": jax.ShapeDtypeStruct(kernel.shape[-1:], jnp.float32),
            "input_scale": jax.ShapeDtypeStruct((), jnp.float32),
        }
    kernel = np.asarray(kernel, np.float32)
    scale = np.maximum(np.abs(kernel).max((0, 1, 2)), np.float32(1e-30)) / np.float32(127)
    return {
        "kernel": np.round(kernel / scale).astype(np.int8),
        "kernel_scale": scale,
        "input_scale": np.float32(max(top, 1e-30) / 127),
    }

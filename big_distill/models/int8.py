"""Convolutions of a folded network in 8 bits: the ranges of their inputs, and integers for their kernels.

Symmetric and static, after Jacob et al. 2018, "Quantization and training of neural networks for efficient
integer-arithmetic-only inference" (arXiv 1712.05877), and Krishnamoorthi 2018 (arXiv 1806.08342): one scale for the
input of a convolution, taken from real images, and one for each of its filters. The first convolution, depthwise ones
and dense layers keep their floats: they are small, and lose most.
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
"""For each convolution, by its path such as block1/unit01/conv1: the size of input that the integer 127 stands for."""


def input_ranges(model: Model, variables: Any, image: jax.Array) -> dict[str, jax.Array]:
    """Measures how large the inputs of a network's convolutions are.

    Args:
      model: a folded network.
      variables: `fold`'s.
      image: [B, H, W, C], normalised.

    Returns:
      For each convolution that `quantize` is for, the largest |x| of its input, float32 [].
    """

    def wanted(layer: Kernel, x: jax.Array) -> bool:
        dense = isinstance(layer, StdConv) or (isinstance(layer, ConvNorm) and not layer.depthwise)
        return dense and x.shape != image.shape  # not the first

    applied = kernel_applications(model, variables, image, wanted)
    return {name: jnp.abs(x).max().astype(jnp.float32) for name, (x, _) in applied.items()}


def quantize(variables: Mapping[str, Any], ranges: Mapping[str, Any]) -> dict[str, Any]:
    """The variables with the named convolutions in integers: kernel int8, kernel_scale float32 [F], input_scale [].

    Args:
      variables: `fold`'s, or their ShapeDtypeStructs.
      ranges: of some of its convolutions, see `Ranges`; of abstract variables the names alone are read.

    Raises:
      ValueError: a range of what is no convolution.
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
        raise ValueError(f"no convolutions: {', '.join(sorted(unknown))}")
    return {**variables, "params": params}


def _integers(kernel: Any, top: float) -> dict[str, Any]:
    """The parameters of a convolution whose input reaches `top`."""
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

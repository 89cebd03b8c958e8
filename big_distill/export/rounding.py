"""Rounds a trained student to fewer bits, without training it again."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from big_distill import models, weights
from big_distill.export.function import Views
from big_distill.models import INPUT_RANGE
from big_distill.state import Aux, Representation, by_path, materialize, path_name
from big_distill.step.views import for_network, to_unit
from big_distill.weights.container import encodings

PRECISIONS = ("bfloat16", "int8", "int4")


def quantize(network: weights.Network, precision: str, views: Views) -> weights.Network:
    """Rounds the parameters of a network to a precision and, under int8 and int4, the inputs of its layers.

    Kernels become integers of 8 or 4 bits with a scale a filter. Their inputs get 8 bits, between the least and the
    greatest value on real images (see `models.variants`). Kernels and inputs already rounded so stay as they are.
    """
    names = by_path(network.variables["params"])
    if precision == "bfloat16":
        return _rounded(network, dict.fromkeys(names, Representation(half=True)))
    top = 2 ** (int(precision.removeprefix("int")) - 1) - 1
    arrays = weights.arrays_of(network)
    kernels = [name for name in names if name.endswith("kernel") and not _is_coarser(arrays[f"params/{name}"], top)]
    network = _rounded(network, dict.fromkeys(kernels, Representation(top=top)))
    if network.architecture.model.activation_bits:
        return network
    return _with_ranges_of(network, views())


def _is_coarser(kernel: np.ndarray, top: int) -> bool:
    """Returns True if a kernel already consists of integers up to `top`, times its scales."""
    grid = encodings.grid_of(kernel)
    return grid is not None and int(np.abs(grid[1]).max()) <= top


def _rounded(network: weights.Network, aux: Aux) -> weights.Network:
    params = jax.device_get(jax.jit(materialize)(network.variables["params"], aux))
    return dataclasses.replace(network, variables={**network.variables, "params": params})


def _with_ranges_of(network: weights.Network, pixels: np.ndarray) -> weights.Network:
    architecture = network.architecture
    model = architecture.build("float32")

    @jax.jit
    def ranges(variables: weights.Variables, pixels: jax.Array) -> dict[str, jax.Array]:
        image = for_network(to_unit(pixels), architecture.card)
        applied = models.kernel_applications(model, variables, image)
        return {name: models.range_of(x) for name, (x, _) in applied.items()}

    input_ranges = jax.device_get(ranges(network.variables, pixels))
    rounded = weights.with_input_ranges(network, 8)

    def leaf(path: jax.tree_util.KeyPath, value: Any) -> Any:
        layer, _, name = path_name(path).rpartition("/")
        return input_ranges[layer] if name == INPUT_RANGE else value

    batch_stats = jax.tree_util.tree_map_with_path(leaf, rounded.variables["batch_stats"])
    return dataclasses.replace(rounded, variables={**rounded.variables, "batch_stats": batch_stats})

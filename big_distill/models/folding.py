"""Computes once all that does not depend on the input of a frozen network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill.config import ModelConfig
from big_distill.models.layers import BATCH_NORM_EPSILON, STD_CONV_EPSILON
from big_distill.models.variants import FACTORS


def standardize_kernels(model: ModelConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Standardises the kernels of a network whose convolutions standardised them at every use."""
    params = jax.tree_util.tree_map_with_path(_standardized, variables["params"])
    return {**variables, "params": params}


def fold_batch_norms(model: ModelConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Merges every BatchNorm of a network into the convolution before it, in float64."""
    batch_stats = variables.get("batch_stats", {})
    params = _without_batch_norm(variables["params"], batch_stats, BATCH_NORM_EPSILON[model.padding])
    ranges = _without_moments(batch_stats)
    return {"params": params, **({"batch_stats": ranges} if ranges else {})}


def cast(variables: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Casts kernels to 'float32' or 'bfloat16', on the host.

    Vectors take little memory and become float32. Integers keep their dtype. A ShapeDtypeStruct stays one.
    """

    def leaf(x: Any) -> Any:
        wanted = jnp.dtype(dtype if x.ndim > 1 else "float32") if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, wanted)
        return np.asarray(x).astype(wanted)

    return jax.tree.map(leaf, dict(variables))


def _standardized(path: jax.tree_util.KeyPath, x: Any) -> np.ndarray:
    """Standardises a convolution's kernel [k, k, C, F] as `StdConv` does; anything else, a factor too, stays."""
    x = np.asarray(x)
    if x.ndim < 4 or path[-2].key in FACTORS:
        return x
    kernel = x - x.mean((0, 1, 2), dtype=np.float64)
    return (kernel / np.sqrt(np.square(kernel).mean((0, 1, 2)) + STD_CONV_EPSILON)).astype(np.float32)


def _without_batch_norm(params: Any, batch_stats: Any, epsilon: float) -> Any:
    """Replaces every {kernel, norm} of a `ConvNorm` by {kernel, bias}; a factored one has its last factor scaled."""
    if not isinstance(params, Mapping):
        return params
    if "var" not in batch_stats.get("norm", {}):
        return {name: _without_batch_norm(child, batch_stats.get(name, {}), epsilon) for name, child in params.items()}
    norm = jax.tree.map(lambda x: np.asarray(x, np.float64), {**params["norm"], **batch_stats["norm"]})
    factor = norm["scale"] / np.sqrt(norm["var"] + epsilon)
    folded = {name: child for name, child in params.items() if name != "norm"}
    folded["bias"] = norm["bias"] - norm["mean"] * factor
    if "kernel" in params:
        return {**folded, "kernel": np.asarray(params["kernel"]) * factor}
    last = next(name for name in reversed(FACTORS) if name in params)
    return {**folded, last: {"kernel": np.asarray(params[last]["kernel"]) * factor}}


def _without_moments(batch_stats: Any) -> Any:
    """Drops BatchNorm's running statistics; the ranges of inputs stay."""
    if not isinstance(batch_stats, Mapping):
        return batch_stats
    left = {name: _without_moments(child) for name, child in batch_stats.items() if name != "norm"}
    return {name: child for name, child in left.items() if not (isinstance(child, Mapping) and not child)}

"""What of a frozen network does not depend on its input, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill.config import ModelConfig
from big_distill.models.layers import BATCH_NORM_EPSILON, STD_CONV_EPSILON
from big_distill.models.variants import FACTORS


def fold(model: ModelConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the folded network, `build(..., folded=True)`, from those of the plain one.

    Kernels are standardised where the network would do so in every step, and every BatchNorm goes into the convolution
    before it, in float64. GroupNorm and LayerNorm depend on the input and stay, and so does all in the user's own
    networks.

    Args:
      model: as `build` takes it.
      variables: of the plain network.

    Returns:
      Its variables in float32, on the host.
    """
    folded = dict(variables)
    if model.name == "bit":
        folded["params"] = jax.tree_util.tree_map_with_path(_standardized, folded["params"])
    elif ":" not in str(model.name):
        batch_stats = folded.pop("batch_stats", {})
        folded["params"] = _without_batch_norm(folded["params"], batch_stats, BATCH_NORM_EPSILON[model.padding])
        if ranges := _without_moments(batch_stats):
            folded["batch_stats"] = ranges
    return cast(folded, "float32")


def cast(variables: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Kernels in 'float32' or 'bfloat16'; vectors weigh little and are float32, integers stay what they are."""

    def leaf(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(dtype if x.ndim > 1 else "float32") if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, dict(variables))


def abstract_cast(variables: Any, dtype: str) -> Any:
    """`cast` of shapes and dtypes alone."""

    def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        wanted = x.dtype
        if jnp.issubdtype(x.dtype, jnp.floating):
            wanted = jnp.dtype(dtype if len(x.shape) > 1 else "float32")
        return jax.ShapeDtypeStruct(x.shape, wanted)

    return jax.tree.map(leaf, dict(variables))


def _standardized(path: jax.tree_util.KeyPath, x: Any) -> np.ndarray:
    """A convolution's kernel [k, k, C, F] as `StdConv` uses it; anything else, a factor too, as it is."""
    x = np.asarray(x)
    if x.ndim < 4 or path[-2].key in FACTORS:
        return x
    kernel = x - x.mean((0, 1, 2), dtype=np.float64)
    return (kernel / np.sqrt(np.square(kernel).mean((0, 1, 2)) + STD_CONV_EPSILON)).astype(np.float32)


def _without_batch_norm(params: Any, batch_stats: Any, epsilon: float) -> Any:
    """Replaces every {kernel, norm} of a `ConvNorm` by {kernel, bias}; of a factored one, its last factor counts."""
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
    """What is left of the running statistics: the ranges of inputs."""
    if not isinstance(batch_stats, Mapping):
        return batch_stats
    left = {name: _without_moments(child) for name, child in batch_stats.items() if name != "norm"}
    return {name: child for name, child in left.items() if not (isinstance(child, Mapping) and not child)}

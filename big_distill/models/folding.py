"""What of a frozen network does not depend on its input, computed once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill.config import ModelConfig
from big_distill.models.layers import BATCH_NORM_EPSILON, STD_CONV_EPSILON


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
        folded["params"] = jax.tree.map(_standardized, folded["params"])
    elif ":" not in str(model.name):
        batch_stats = folded.pop("batch_stats", {})
        folded["params"] = _without_batch_norm(folded["params"], batch_stats, BATCH_NORM_EPSILON[model.padding])
    return cast(folded, "float32")


def cast(variables: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Kernels in 'float32' or 'bfloat16'; vectors weigh little and are float32, integers stay what they are."""

    def leaf(x: Any) -> np.ndarray:
        x = np.asarray(x)
        return x.astype(dtype if x.ndim > 1 else "float32") if jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, dict(variables))


def _standardized(x: Any) -> np.ndarray:
    """A convolution's kernel [k, k, C, F] as `StdConv` uses it; anything else as it is."""
    x = np.asarray(x)
    if x.ndim < 4:
        return x
    kernel = x - x.mean((0, 1, 2), dtype=np.float64)
    return (kernel / np.sqrt(np.square(kernel).mean((0, 1, 2)) + STD_CONV_EPSILON)).astype(np.float32)


def _without_batch_norm(params: Any, batch_stats: Any, epsilon: float) -> Any:
    """Replaces every {kernel, norm} of a `ConvNorm` by {kernel, bias}."""
    if not batch_stats:
        return params
    if "kernel" in params:
        norm = jax.tree.map(lambda x: np.asarray(x, np.float64), {**params["norm"], **batch_stats["norm"]})
        factor = norm["scale"] / np.sqrt(norm["var"] + epsilon)
        return {"kernel": np.asarray(params["kernel"]) * factor, "bias": norm["bias"] - norm["mean"] * factor}
    return {name: _without_batch_norm(child, batch_stats.get(name, {}), epsilon) for name, child in params.items()}

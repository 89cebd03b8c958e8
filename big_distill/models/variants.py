"""Makes variants of the layers of any family: factored kernels, and inputs in few bits.

Fields of a `ModelConfig` choose the variants. They replace the `apply_kernel` of layers (`layers.Kernel`), by path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from big_distill.config import ModelConfig
from big_distill.errors import ConfigError, nearest
from big_distill.models.layers import Conv, ConvNorm, Dense, Kernel, StdConv
from big_distill.state import Model, Outputs, straight_through

Ranks = Mapping[str, tuple[int, ...]]
"""Maps a layer's path to its ranks: one for a dense layer or 1 x 1 convolution, else two: inputs, outputs; 0: all."""
INPUT_RANGE = "input_range"
FACTORS = ("first", "core", "last")
"""Names of the layers that a factored one consists of, in their order."""
_MOMENTUM = 0.9


def parse_ranks(rules: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Parses ('fc1=32', 'conv2=8x16') into {'fc1': (32,), 'conv2': (8, 16)}; inverts `format_ranks`."""
    split = [rule.rpartition("=")[::2] for rule in rules]
    return {layer: tuple(map(int, ranks.split("x"))) for layer, ranks in split}


def format_ranks(ranks: Ranks) -> tuple[str, ...]:
    """Formats {'fc1': (32,), 'conv2': (8, 16)} as ('fc1=32', 'conv2=8x16')."""
    return tuple(f"{layer}={'x'.join(map(str, both))}" for layer, both in ranks.items())


def with_variants(model: Model, config: ModelConfig) -> Model:
    """Returns the model with the variants of its layers that `config.ranks` and `config.activation_bits` choose.

    A layer of rank r holds `first/kernel` [C, r] and `last/kernel` [r, F] instead of its kernel. A convolution of ranks
    (r, s) also holds `core/kernel` [k, k, r, s] between two that are 1 x 1 (Kim et al. 2016, arXiv 1511.06530). If a
    rank is 0, its 1 x 1 convolution is left out.

    The inputs of all kernels are rounded to 2^bits - 1 steps between two bounds, and zero is one of the steps (Jacob et
    al. 2018, arXiv 1712.05877, section 2.1). The bounds are running means, in `batch_stats` as `input_range` [2].
    Gradients pass where nothing was clipped.
    """
    ranks, bits = parse_ranks(config.ranks), config.activation_bits
    if not ranks and not bits:
        return model
    names: set[str] = set()

    def variant(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer: Any = context.module
        if not _applies_kernel(context):
            return next_fun(*args, **kwargs)
        name, (x,) = "/".join(layer.path), args
        names.add(name)
        if name in ranks:
            return _factored(layer, x, ranks[name], name)
        return next_fun(_rounded(layer, x, bits) if bits else x)

    def init(rng: jax.Array, image: jax.Array) -> dict[str, Any]:
        with nn.intercept_methods(variant):
            variables = model.init(rng, image)
        if not names:
            raise ConfigError(f"{config.name!r} has no layer of `models.layers`: ranks and activation_bits do nothing")
        for missing in ranks.keys() - names:
            raise ConfigError(f"ranks: {missing!r} is no layer of this network{nearest(missing, sorted(names))}")
        return variables

    def apply(variables: Mapping[str, Any], image: jax.Array, **kwargs: Any) -> tuple[Outputs, Any]:
        with nn.intercept_methods(variant):
            return model.apply(variables, image, **kwargs)

    return Model(init, apply)


def kernel_applications(
    model: Model, variables: Any, image: jax.Array, wanted: Callable[[Kernel, jax.Array], bool] = lambda *_: True
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Records the input and the output of every kernel's application, by the path of its layer.

    Args:
      model: any network.
      variables: the model's variables.
      image: [B, H, W, C], normalised.
      wanted: `(layer, input) -> bool`, True for a layer to record.
    """
    seen: dict[str, tuple[jax.Array, jax.Array]] = {}

    def record(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer: Any = context.module
        out = next_fun(*args, **kwargs)
        if _applies_kernel(context) and layer.has_variable("params", "kernel") and wanted(layer, *args):
            seen["/".join(layer.path)] = (args[0], out)
        return out

    with nn.intercept_methods(record):
        model.apply(variables, image, train=False)
    return seen


def round_to_steps(x: jax.Array, low: jax.Array, high: jax.Array, bits: int) -> jax.Array:
    """Rounds to 2^bits - 1 steps from `low` to `high`, moved so that zero is one; low <= 0 <= high."""
    steps = 2**bits - 1
    scale = jnp.maximum(high - low, 1e-30) / steps
    zero = jnp.round(-low / scale)
    clipped = jnp.clip(x.astype(jnp.float32), -zero * scale, (steps - zero) * scale)
    rounded = jnp.round(clipped / scale) * scale
    return straight_through(rounded, clipped).astype(x.dtype)


def range_of(x: jax.Array) -> jax.Array:
    """Finds the least and the greatest of the values and zero: float32 [2]."""
    return jnp.stack([jnp.minimum(x.min(), 0), jnp.maximum(x.max(), 0)]).astype(jnp.float32)


def _applies_kernel(context: nn.module.InterceptorContext) -> bool:
    return isinstance(context.module, Kernel) and context.method_name == "apply_kernel"


def _rounded(layer: Kernel, x: jax.Array, bits: int) -> jax.Array:
    kept = layer.variable("batch_stats", INPUT_RANGE, lambda: jnp.zeros(2))
    if layer.is_mutable_collection("batch_stats") and not layer.is_initializing():
        now = jax.lax.stop_gradient(range_of(x))
        kept.value = jnp.where(kept.value.any(), _MOMENTUM * kept.value + (1 - _MOMENTUM) * now, now)
    return round_to_steps(x, kept.value[0], kept.value[1], bits)


def _factored(layer: Kernel, x: jax.Array, ranks: tuple[int, ...], name: str) -> jax.Array:
    expected = 1 if isinstance(layer, Dense) or getattr(layer, "size", 1) == 1 else 2
    if len(ranks) != expected or (expected == 1 and not ranks[0]):
        number = "one rank" if expected == 1 else "two ranks, such as 8x16"
        raise ConfigError(f"ranks: {name!r} takes {number}, not {'x'.join(map(str, ranks))}")
    channels = (min(x.shape[-1], layer.features),) if expected == 1 else (x.shape[-1], layer.features)
    if any(rank > most for rank, most in zip(ranks, channels, strict=True)):
        raise ConfigError(f"ranks: {name!r} has no more than {'x'.join(map(str, channels))}")
    if isinstance(layer, Dense):
        (rank,) = ranks
        x = Dense(rank, layer.dtype, bias=False, name="first")(x)
        return Dense(layer.features, layer.dtype, bias=False, name="last")(x)
    if isinstance(layer, ConvNorm) and layer.depthwise:
        raise ConfigError(f"ranks: {name!r} is a depthwise convolution, which has no factors")
    assert isinstance(layer, Conv | StdConv | ConvNorm)
    one = functools.partial(Conv, dtype=layer.dtype, size=1, bias=False)
    if layer.size == 1:
        (rank,) = ranks
        return one(layer.features, name="last")(one(rank, stride=layer.stride, name="first")(x))
    before, after = ranks
    if before:
        x = one(before, name="first")(x)
    x = Conv(after or layer.features, layer.dtype, layer.size, layer.stride, layer.pads, bias=False, name="core")(x)
    return one(layer.features, name="last")(x) if after else x

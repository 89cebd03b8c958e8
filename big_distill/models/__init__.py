"""Networks, each as a `Model` of two pure functions. Flax is not seen outside of this folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn

from big_distill.config import ModelConfig, user_code
from big_distill.errors import ConfigError
from big_distill.models import bit, cnn, efficientnet_lite, inverted_residual, mobilenet_v3, vit
from big_distill.models.families import BIT_BLOCKS
from big_distill.models.folding import abstract_cast, cast, fold
from big_distill.models.int8 import abstract_quantized, input_ranges, quantize
from big_distill.models.inverted_residual import Unit
from big_distill.models.variants import (
    FACTORS,
    INPUT_RANGE,
    format_ranks,
    kernel_applications,
    parse_ranks,
    range_of,
    with_variants,
)
from big_distill.state import Model

__all__ = [
    "FACTORS",
    "INPUT_RANGE",
    "abstract_cast",
    "abstract_quantized",
    "build",
    "cast",
    "features_of",
    "fold",
    "format_ranks",
    "from_linen",
    "input_ranges",
    "kernel_applications",
    "parse_ranks",
    "quantize",
    "range_of",
]


@functools.cache
def build(model: ModelConfig, num_classes: int, dtype: str, folded: bool = False) -> Model:
    """Makes the network that a config describes.

    The same arguments give the same object, so that a step which has the Model as a static argument is compiled once.

    Args:
      model: as `resolve` checked it. A name with a colon is the user's own `module:function`, called as this is.
      num_classes: K, the number of logits.
      dtype: of activations, 'float32' or 'bfloat16'; parameters and logits are float32.
      folded: the network of `fold`'s variables, and of `quantize`'s, for inference only; the same one where there is
        nothing to fold.

    Returns:
      The Model; its image is float32 [B, H, W, C], already normalised.

    Raises:
      ConfigError: the user's own function cannot be imported, or does not return a Model.
    """
    return with_variants(_family(model, num_classes, dtype, folded), model)


def features_of(model: ModelConfig) -> tuple[int, ...]:
    """The widths of all layers that no skip connection ties, in order: `model.features`, or the family's own."""
    match model.name:
        case _ if model.features:
            return model.features
        case "lenet5":
            return cnn.LENET5
        case "six_layer_cnn":
            return cnn.SIX_LAYER
        case "bit":
            return bit.features(_blocks(model), model.width)
        case "efficientnet_lite0" | "efficientnet_lite1" | "efficientnet_lite2" | "mobilenet_v3_large":
            return inverted_residual.features(*_units(model))
        case "vit_small" | "vit_base" as name:
            width, depth, _ = vit.SIZES[name]
            return (4 * width,) * depth
        case _:
            return ()


def _blocks(model: ModelConfig) -> tuple[int, ...]:
    return model.blocks or BIT_BLOCKS[model.depth]


def _units(model: ModelConfig) -> tuple[tuple[Unit, ...], int]:
    """(blocks, channels of the stem)."""
    if model.name == "mobilenet_v3_large":
        units = mobilenet_v3.units(model.blocks, model.width)
        return units, units[0].expanded
    return efficientnet_lite.units(str(model.name), model.blocks, model.width), efficientnet_lite.STEM


def _family(model: ModelConfig, num_classes: int, dtype: str, folded: bool) -> Model:
    features, own = features_of(model), features_of(dataclasses.replace(model, features=()))
    if own and len(features) != len(own):
        raise ConfigError(f"features={features}: this {model.name} has {len(own)} widths: {own}")
    match model.name:
        case "mlp":
            return from_linen(cnn.MLP(features, num_classes, dtype))
        case "lenet5":
            return from_linen(cnn.LeNet5(features, num_classes, dtype))
        case "cnn":
            return from_linen(cnn.CNN(features, num_classes, dtype))
        case "six_layer_cnn":
            return from_linen(cnn.SixLayerCNN(features, num_classes, dtype))
        case "bit":
            return from_linen(
                bit.BiT(_blocks(model), features, model.width, model.root_pool, num_classes, dtype, folded)
            )
        case "efficientnet_lite0" | "efficientnet_lite1" | "efficientnet_lite2" as name:
            units = inverted_residual.with_features(*_units(model), features)
            dropout = efficientnet_lite.DROPOUT[name]
            return from_linen(
                efficientnet_lite.EfficientNetLite(units, dropout, model.padding, num_classes, dtype, folded)
            )
        case "mobilenet_v3_large":
            units = inverted_residual.with_features(*_units(model), features)
            dropout = mobilenet_v3.DROPOUT
            return from_linen(
                mobilenet_v3.MobileNetV3(units, dropout, model.norm, model.padding, num_classes, dtype, folded)
            )
        case "vit_small" | "vit_base" as name:
            width, _, num_heads = vit.SIZES[name]
            return from_linen(vit.ViT(features, width, num_heads, model.patch_size, num_classes, dtype))
        case _:
            own = user_code.load(str(model.name), "model.name")(model, num_classes, dtype)
            if not isinstance(own, Model):
                raise ConfigError(f"model.name={model.name!r}: expected a Model, got {type(own).__name__}")
            return own


def from_linen(network: nn.Module) -> Model:
    """Makes a Model of a Flax module.

    Its `__call__(self, image [B, H, W, C], *, train)` returns `Outputs`, or logits [B, K] alone. The module may have
    BatchNorm (its collection `batch_stats`) and dropout (fed by `apply`'s `rng`).
    """

    def init(rng: jax.Array, image: jax.Array) -> dict[str, Any]:
        return dict(network.init(rng, image, train=False))

    def apply(
        variables: Mapping[str, Any], image: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> tuple[Any, Any]:
        rngs = {} if rng is None else {"dropout": rng}
        batch_stats = variables.get("batch_stats", {})
        if train and batch_stats:
            outputs, updated = network.apply(variables, image, train=True, rngs=rngs, mutable=["batch_stats"])
            batch_stats = updated["batch_stats"]
        else:
            outputs = network.apply(variables, image, train=train, rngs=rngs)
        return outputs, batch_stats

    return Model(init, apply)

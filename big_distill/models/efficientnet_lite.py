"""Implements EfficientNet-Lite: EfficientNet (Tan & Le 2019, arXiv 1905.11946) with ReLU6, without squeeze-excite.

It follows `models/official/efficientnet/lite` of github.com/tensorflow/tpu: compound scaling leaves the stem, the head
and the number of blocks in the first and the last stage as they are. Training there also drops whole blocks at random
(stochastic depth). Training here does not.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from big_distill.config import ModelConfig
from big_distill.models import inverted_residual
from big_distill.models.family import Family
from big_distill.models.inverted_residual import Unit, multiple_of_8
from big_distill.models.layers import ConvNorm, head
from big_distill.state import Outputs

_STAGES = (  # (blocks, expansion, features, size, stride)
    (1, 1, 16, 3, 1),
    (2, 6, 24, 3, 2),
    (2, 6, 40, 5, 2),
    (3, 6, 80, 3, 2),
    (3, 6, 112, 5, 1),
    (4, 6, 192, 5, 2),
    (1, 6, 320, 3, 1),
)
STEM = 32
_SCALES = {  # (width, depth)
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
DROPOUT = {"efficientnet_lite0": 0.2, "efficientnet_lite1": 0.2, "efficientnet_lite2": 0.3}


def units(name: str, blocks: tuple[int, ...], width: float) -> tuple[Unit, ...]:
    """Lists the blocks of `efficientnet_lite0`, `1` or `2`.

    blocks: number of blocks in each of the seven stages; (): those published.
    width: factor on the published channels, in multiples of 8.
    """
    width_scale, depth_scale = _SCALES[name]
    scaled: list[Unit] = []
    channels = STEM
    for i, (num_blocks, expansion, features, size, stride) in enumerate(_STAGES):
        if 0 < i < len(_STAGES) - 1:
            num_blocks = math.ceil(num_blocks * depth_scale)
        features = multiple_of_8(features * width_scale * width)
        for j in range(blocks[i] if blocks else num_blocks):
            scaled.append(Unit(expansion * channels, features, size, stride if j == 0 else 1, "relu6"))
            channels = features
    return tuple(scaled)


class EfficientNetLite(nn.Module):
    """Computes the whole network: a stem, inverted residuals, a 1 x 1 convolution, the mean, dropout, a dense layer.

    padding, folded: see `ConvNorm`.
    """

    units: tuple[Unit, ...]
    dropout: float
    padding: str
    num_classes: int
    dtype: str
    folded: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Takes images [B, H, W, C]."""
        layer = functools.partial(ConvNorm, dtype=self.dtype, padding=self.padding, norm="batch", folded=self.folded)
        x = nn.relu6(layer(STEM, size=3, stride=2, name="stem")(image, train=train))
        *maps, x = inverted_residual.maps_of(self.units, layer, self.dtype, x, train)
        x = nn.relu6(layer(1280, size=1, name="last")(x, train=train))
        embedding = x.mean((1, 2), dtype=jnp.float32)
        logits = head(nn.Dropout(self.dropout, deterministic=not train)(embedding), self.num_classes)
        return Outputs(logits, embedding, (*maps, x))


def _units(model: ModelConfig) -> tuple[Unit, ...]:
    return units(str(model.name), model.blocks, model.width)


def _build(model: ModelConfig, num_classes: int, dtype: str, folded: bool) -> nn.Module:
    blocks = inverted_residual.with_widths(_units(model), model.features)
    return EfficientNetLite(blocks, DROPOUT[str(model.name)], model.padding, num_classes, dtype, folded)


_FAMILY = Family(
    fields=("features", "blocks", "width", "padding"),
    min_image_size=lambda model: 32,
    build=_build,
    widths=lambda model: inverted_residual.widths(_units(model)),
    num_stages=len(_STAGES),
    int8=True,
)
FAMILIES = dict.fromkeys(_SCALES, _FAMILY)

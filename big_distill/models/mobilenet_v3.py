"""Implements MobileNetV3-Large (Howard et al. 2019, "Searching for MobileNetV3", arXiv 1905.02244)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from big_distill.config import ModelConfig
from big_distill.models import inverted_residual
from big_distill.models.family import Family
from big_distill.models.inverted_residual import Unit, multiple_of_8
from big_distill.models.layers import ConvNorm, Dense, head
from big_distill.state import Outputs

_STAGES = (  # table 1; a squeeze-excite has a quarter of the expanded channels, in multiples of 8
    (Unit(16, 16, 3, 1, "relu"),),
    (Unit(64, 24, 3, 2, "relu"), Unit(72, 24, 3, 1, "relu")),
    (Unit(72, 40, 5, 2, "relu", 24), Unit(120, 40, 5, 1, "relu", 32), Unit(120, 40, 5, 1, "relu", 32)),
    (
        Unit(240, 80, 3, 2, "hard_swish"),
        Unit(200, 80, 3, 1, "hard_swish"),
        Unit(184, 80, 3, 1, "hard_swish"),
        Unit(184, 80, 3, 1, "hard_swish"),
    ),
    (Unit(480, 112, 3, 1, "hard_swish", 120), Unit(672, 112, 3, 1, "hard_swish", 168)),
    (
        Unit(672, 160, 5, 2, "hard_swish", 168),
        Unit(960, 160, 5, 1, "hard_swish", 240),
        Unit(960, 160, 5, 1, "hard_swish", 240),
    ),
)
DROPOUT = 0.2


def units(blocks: tuple[int, ...], width: float) -> tuple[Unit, ...]:
    """Lists the blocks of MobileNetV3-Large.

    blocks: number of blocks in each of the six stages, whose last block is repeated; (): those published.
    width: the paper's multiplier of channels, in multiples of 8.
    """
    numbers = blocks or tuple(map(len, _STAGES))
    kept = [
        stage[min(j, len(stage) - 1)] for stage, number in zip(_STAGES, numbers, strict=True) for j in range(number)
    ]
    return tuple(
        dataclasses.replace(
            unit,
            expanded=multiple_of_8(unit.expanded * width),
            features=multiple_of_8(unit.features * width),
            squeezed=multiple_of_8(unit.squeezed * width) if unit.squeezed else 0,
        )
        for unit in kept
    )


class MobileNetV3(nn.Module):
    """Computes a stem, inverted residuals, a 1 x 1 convolution, the mean, a dense layer, dropout and the head.

    units: the blocks; the first is as wide as the stem.
    norm: 'batch', or 'group' as in Beyer et al. 2022 (arXiv 2106.05237).
    norm, padding, folded: see `ConvNorm`.
    """

    units: tuple[Unit, ...]
    dropout: float
    norm: str
    padding: str
    num_classes: int
    dtype: str
    folded: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Takes images [B, H, W, C]."""
        layer = functools.partial(ConvNorm, dtype=self.dtype, padding=self.padding, norm=self.norm, folded=self.folded)
        x = nn.hard_swish(layer(self.units[0].expanded, size=3, stride=2, name="stem")(image, train=train))
        *maps, x = inverted_residual.maps_of(self.units, layer, self.dtype, x, train)
        x = nn.hard_swish(layer(6 * x.shape[-1], size=1, name="last")(x, train=train))
        embedding = nn.hard_swish(Dense(1280, "float32", name="pre_head")(x.mean((1, 2), dtype=jnp.float32)))
        logits = head(nn.Dropout(self.dropout, deterministic=not train)(embedding), self.num_classes)
        return Outputs(logits, embedding, (*maps, x))


def _build(model: ModelConfig, num_classes: int, dtype: str, folded: bool) -> nn.Module:
    blocks = inverted_residual.with_widths(units(model.blocks, model.width), model.features)
    return MobileNetV3(blocks, DROPOUT, model.norm, model.padding, num_classes, dtype, folded)


_FAMILY = Family(
    fields=("features", "blocks", "width", "norm", "padding"),
    min_image_size=lambda model: 32,
    build=_build,
    widths=lambda model: inverted_residual.widths(units(model.blocks, model.width)),
    num_stages=len(_STAGES),
    int8=True,
)
FAMILIES = {"mobilenet_v3_large": _FAMILY}

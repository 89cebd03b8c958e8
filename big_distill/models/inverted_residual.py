"""The block of MobileNetV2, MobileNetV3 and EfficientNet."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn

from big_distill.models.layers import Dense

ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "hard_swish": nn.hard_swish}


@dataclasses.dataclass(frozen=True)
class Unit:
    """The facts of one block: `size` and `stride` are the depthwise convolution's, `squeezed` 0 without squeeze-excite.

    hidden: channels that are left of the `expanded`; 0: all.
    """

    expanded: int
    features: int
    size: int
    stride: int
    activation: str
    squeezed: int = 0
    hidden: int = 0


def widths(units: Sequence[Unit]) -> tuple[int, ...]:
    """Channels after the expansion of every block that has one, which no skip connection ties."""
    return tuple(unit.hidden or unit.expanded for unit, has in zip(units, _expanding(units), strict=True) if has)


def with_widths(units: Sequence[Unit], widths: Sequence[int]) -> tuple[Unit, ...]:
    """The blocks with other numbers of channels where `widths` counts them."""
    left = iter(widths)
    expanding = zip(units, _expanding(units), strict=True)
    return tuple(dataclasses.replace(unit, hidden=next(left)) if has else unit for unit, has in expanding)


def _expanding(units: Sequence[Unit]) -> list[bool]:
    """Whether a block is wider than its input; the first is as wide as the stem."""
    return [False, *(unit.expanded != before.features for before, unit in itertools.pairwise(units))]


def multiple_of_8(channels: float) -> int:
    """The nearest multiple of 8, or the next if that is below 90 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class InvertedResidual(nn.Module):
    """Expand 1 x 1, depthwise, squeeze-excite, project 1 x 1 without activation; a skip where the shape stays.

    Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381. A block as wide as
    its input has no expansion. `layer` is a `ConvNorm` without its features, size, stride and depthwise.
    """

    unit: Unit
    layer: Callable[..., Any]
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        unit, activation = self.unit, ACTIVATIONS[self.unit.activation]
        hidden = unit.hidden or unit.expanded
        y = x
        if unit.expanded != x.shape[-1]:
            y = activation(self.layer(hidden, size=1, name="expand")(y, train=train))
        depthwise = self.layer(hidden, size=unit.size, stride=unit.stride, depthwise=True, name="depthwise")
        y = activation(depthwise(y, train=train))
        if unit.squeezed:
            y = SqueezeExcite(unit.squeezed, self.dtype, name="squeeze_excite")(y)
        y = self.layer(unit.features, size=1, name="project")(y, train=train)
        return x + y if x.shape == y.shape else y


def maps_of(units: Sequence[Unit], layer: Callable[..., Any], dtype: str, x: jax.Array, train: bool) -> list[jax.Array]:
    """The last map of each resolution that the blocks take `x` [B, H, W, C] through."""
    maps = []
    for i, unit in enumerate(units, 1):
        if unit.stride > 1:
            maps.append(x)
        x = InvertedResidual(unit, layer, dtype, name=f"unit{i:02d}")(x, train=train)
    return [*maps, x]


class SqueezeExcite(nn.Module):
    """Scales each channel by a hard sigmoid of two dense layers on the channels' means.

    Hu et al. 2018, "Squeeze-and-Excitation Networks", arXiv 1709.01507, as in MobileNetV3 (Howard et al. 2019, section
    5.3).
    """

    squeezed: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        y = nn.relu(Dense(self.squeezed, self.dtype, name="reduce")(x.mean((1, 2))))
        y = nn.hard_sigmoid(Dense(x.shape[-1], self.dtype, name="expand")(y))
        return x * y[:, None, None]

"""Implements the block of MobileNetV2, MobileNetV3 and EfficientNet."""

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
    """Describes one block.

    size, stride: those of the depthwise convolution.
    squeezed: channels of the squeeze-excite; 0: none.
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
    """Returns the channels after the expansion of every block that has one; no skip connection ties them."""
    return tuple(unit.hidden or unit.expanded for unit, has in zip(units, _expanding(units), strict=True) if has)


def with_widths(units: Sequence[Unit], widths: Sequence[int]) -> tuple[Unit, ...]:
    """Returns the blocks with other numbers of channels after their expansions, in the order of `widths`."""
    left = iter(widths)
    expanding = zip(units, _expanding(units), strict=True)
    return tuple(dataclasses.replace(unit, hidden=next(left)) if has else unit for unit, has in expanding)


def _expanding(units: Sequence[Unit]) -> list[bool]:
    """Returns True for each block that is not as wide as its input; the first is as wide as the stem."""
    return [False, *(unit.expanded != before.features for before, unit in itertools.pairwise(units))]


def multiple_of_8(channels: float) -> int:
    """Rounds to the nearest multiple of 8, or to the next if that is below 90 % of `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class InvertedResidual(nn.Module):
    """Expands 1 x 1, convolves depthwise, squeezes and excites, projects 1 x 1 without activation.

    It is the block of Sandler et al. 2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", arXiv 1801.04381.
    A block whose shape stays has a skip connection. A block as wide as its input has no expansion. `layer` is a
    `ConvNorm` without its features, size, stride and depthwise.
    """

    unit: Unit
    layer: Callable[..., Any]
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
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
    """Applies the blocks to `x` [B, H, W, C]; returns the last map of each resolution."""
    maps = []
    for i, unit in enumerate(units, 1):
        if unit.stride > 1:
            maps.append(x)
        x = InvertedResidual(unit, layer, dtype, name=f"unit{i:02d}")(x, train=train)
    return [*maps, x]


class SqueezeExcite(nn.Module):
    """Scales each channel by a hard sigmoid of two dense layers on the channels' means.

    It is that of Hu et al. 2018, "Squeeze-and-Excitation Networks", arXiv 1709.01507, as in MobileNetV3 (Howard et al.
    2019, section 5.3).
    """

    squeezed: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        y = nn.relu(Dense(self.squeezed, self.dtype, name="reduce")(x.mean((1, 2))))
        y = nn.hard_sigmoid(Dense(x.shape[-1], self.dtype, name="expand")(y))
        return x * y[:, None, None]

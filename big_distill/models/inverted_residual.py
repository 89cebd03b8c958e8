"""The block of MobileNetV2, MobileNetV3 and EfficientNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn

from big_distill.models.layers import Dense

ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "hard_swish": nn.hard_swish}


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one block is: `size` and `stride` are the depthwise convolution's, `squeezed` 0 without squeeze-excite.

    hidden: channels that are left of the `expanded`; 0: all.
    """

    expanded: int
    features: int
    size: int
    stride: int
    activation: str
    squeezed: int = 0
    hidden: int = 0


def features(units: Sequence[Unit], stem: int) -> tuple[int, ...]:
    """Channels after the expansion of every block that has one, which no skip connection ties."""
    return tuple(unit.hidden or unit.expanded for unit, has in zip(units, _expanding(units, stem), strict=True) if has)


def with_features(units: Sequence[Unit], stem: int, features: Sequence[int]) -> tuple[Unit, ...]:
    """The blocks with other numbers of channels where `features` counts them."""
    left = iter(features)
    expanding = zip(units, _expanding(units, stem), strict=True)
    return tuple(dataclasses.replace(unit, hidden=next(left)) if has else unit for unit, has in expanding)


def _expanding(units: Sequence[Unit], stem: int) -> list[bool]:
    inputs = [stem, *(unit.features for unit in units)]
    return [unit.expanded != channels for unit, channels in zip(units, inputs, strict=False)]


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

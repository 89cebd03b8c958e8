"""The block of MobileNetV2, MobileNetV3 and EfficientNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "hard_swish": nn.hard_swish}


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one block is: `size` and `stride` are the depthwise convolution's, `squeezed` 0 without squeeze-excite."""

    expanded: int
    features: int
    size: int
    stride: int
    activation: str
    squeezed: int = 0


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
        y = x
        if unit.expanded != x.shape[-1]:
            y = activation(self.layer(unit.expanded, 1, name="expand")(y, train=train))
        depthwise = self.layer(unit.expanded, unit.size, stride=unit.stride, depthwise=True, name="depthwise")
        y = activation(depthwise(y, train=train))
        if unit.squeezed:
            y = SqueezeExcite(unit.squeezed, self.dtype, name="squeeze_excite")(y)
        y = self.layer(unit.features, 1, name="project")(y, train=train)
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
        y = nn.relu(nn.Dense(self.squeezed, dtype=self.dtype, name="reduce")(x.mean((1, 2))))
        y = nn.hard_sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name="expand")(y))
        return x * y[:, None, None]

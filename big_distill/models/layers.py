"""Defines the layers of the networks: convolution, pooling and normalisation.

`lax.platform_dependent` chooses between a plain operation and that of `cpu_ops` when a program is lowered. A program
for TPU or GPU holds the plain operation alone, even when it is compiled on a CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from big_distill.models import cpu_ops
from big_distill.models.cpu_ops import LAYOUT, Pads

Padding = str | int
"""'SAME', 'VALID' or a number of pixels on every side."""
STD_CONV_EPSILON = 1e-10
BATCH_NORM_EPSILON = {"same": 1e-3, "symmetric": 1e-5}
"""Epsilon of TensorFlow and that of PyTorch, by their padding; see `ConvNorm`."""


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Cross-correlates `x` [B, H, W, C] with `kernel` [k, k, C, F]: [B, H', W', F]."""
    pads = _pads(x, len(kernel), stride, padding)
    plain = _convolution(stride, pads)
    on_cpu = functools.partial(cpu_ops.conv, stride=stride, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Cross-correlates each channel of `x` [B, H, W, C] with its filter of `kernel` [k, k, 1, C]: [B, H', W', C]."""
    pads = _pads(x, len(kernel), stride, padding)
    plain = _convolution(stride, pads, feature_group_count=x.shape[-1])
    on_cpu = functools.partial(cpu_ops.depthwise_conv, stride=stride, pads=pads)
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def int8_conv(
    x: jax.Array,
    kernel: jax.Array,
    input_scale: jax.Array,
    kernel_scale: jax.Array,
    stride: int = 1,
    padding: Padding = "SAME",
) -> jax.Array:
    """Computes `conv` in integers: round(x / input_scale), clipped to [-127, 127], with an int8 kernel.

    Products are added up in int32. On the CPU, where XLA is slow at that, they are added up in float32: the sums are
    the same integers up to 2^24, and rounded above.

    Args:
      x: [B, H, W, C].
      kernel: int8 [k, k, C, F].
      input_scale: float32 [], size of one step of the input.
      kernel_scale: float32 [F], size of one step of each filter.
      stride, padding: as in `conv`.

    Returns:
      float32 [B, H', W', F].
    """
    steps = jnp.clip(jnp.round(x.astype(jnp.float32) / input_scale), -127, 127)
    pads = _pads(x, len(kernel), stride, padding)

    def in_integers(steps: jax.Array, kernel: jax.Array) -> jax.Array:
        convolution = _convolution(stride, pads, preferred_element_type=jnp.int32)
        return convolution(steps.astype(jnp.int8), kernel).astype(jnp.float32)

    def in_floats(steps: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv(steps, kernel.astype(jnp.float32), stride, padding)

    sums = lax.platform_dependent(steps, kernel, cpu=in_floats, default=in_integers)
    return sums * (input_scale * kernel_scale)


def max_pool(x: jax.Array, size: int, stride: int, padding: Padding = "VALID") -> jax.Array:
    """Computes the maximum over windows of `x` [B, H, W, C], padded with -inf: [B, H', W', C]."""
    pads = _pads(x, size, stride, padding)
    plain = functools.partial(nn.max_pool, window_shape=(size, size), strides=(stride, stride), padding=pads)
    on_cpu = functools.partial(cpu_ops.max_pool, size=size, stride=stride, pads=pads)
    return lax.platform_dependent(x, cpu=on_cpu, default=plain)


def _convolution(stride: int, pads: Pads, **options: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    strides = (stride, stride)
    return functools.partial(
        lax.conv_general_dilated, window_strides=strides, padding=pads, dimension_numbers=LAYOUT, **options
    )


def _pads(x: jax.Array, size: int, stride: int, padding: Padding) -> Pads:
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    rows, columns = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), padding)
    return rows, columns


class Kernel(nn.Module):
    """Defines a layer with a kernel; `variants.with_variants` may replace its `apply_kernel`."""

    features: int
    dtype: str

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """Applies the layer without its bias and normalisation."""
        raise NotImplementedError

    def add_bias(self, x: jax.Array) -> jax.Array:
        """Adds the bias to [..., features]."""
        return x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)


class Dense(Kernel):
    """Computes a matrix product, with a bias by default."""

    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., features]."""
        x = self.apply_kernel(x)
        return self.add_bias(x) if self.bias else x

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """Maps [..., C] to [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


class Conv(Kernel):
    """Computes a square convolution, with a bias by default."""

    size: int
    stride: int = 1
    padding: Padding = "SAME"
    bias: bool = True

    @property
    def pads(self) -> Padding:
        """Returns the padding of the convolution."""
        return self.padding

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        x = self.apply_kernel(x)
        return self.add_bias(x) if self.bias else x

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.pads)


class StdConv(Kernel):
    """Computes a square convolution with a standardised kernel, size // 2 zero pixels on every side and no bias.

    Each filter is brought to mean 0 and variance 1 over (h, w, in), in float32 (Qiao et al. 2019, "Weight
    Standardization", arXiv 1903.10520). If `folded`, the kernel is already standardised.
    """

    size: int
    stride: int = 1
    folded: bool = False

    @property
    def pads(self) -> Padding:
        """Returns the padding of the convolution."""
        return self.size // 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        return self.apply_kernel(x)

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if not self.folded:
            kernel -= kernel.mean((0, 1, 2))
            kernel *= lax.rsqrt(jnp.square(kernel).mean((0, 1, 2)) + STD_CONV_EPSILON)
        return _conv_of(self, x, kernel)


def _conv_of(layer: StdConv | ConvNorm, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes the dense convolution of a layer, in its dtype; in integers if `quantize` made its kernel int8."""
    if kernel.dtype != jnp.int8:
        return conv(x.astype(layer.dtype), kernel.astype(layer.dtype), layer.stride, layer.pads)
    input_scale = layer.param("input_scale", nn.initializers.ones, ())
    kernel_scale = layer.param("kernel_scale", nn.initializers.ones, (layer.features,))
    return int8_conv(x, kernel, input_scale, kernel_scale, layer.stride, layer.pads).astype(layer.dtype)


def head(x: jax.Array, num_classes: int, kernel_init: Any = Dense.kernel_init) -> jax.Array | None:
    """Maps an embedding [B, D] to logits [B, K], in float32 for any dtype; returns None if there are no classes."""
    return Dense(num_classes, "float32", kernel_init, name="head")(x) if num_classes else None


class GroupNorm(nn.Module):
    """Normalises each group of channels over the image, then scales and shifts (Wu & He 2018, arXiv 1803.08494).

    There are gcd(num_groups, C) groups: the usual 32, or fewer where 32 does not divide a narrow network's channels.
    Mean and mean square are taken in float32 and in one pass, over the image first and then over the group. Flax's
    GroupNorm views the whole map as [B, H, W, groups, C / groups] and takes up to ten times as long on the CPU.
    """

    dtype: str
    num_groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape."""
        channels = x.shape[-1]
        groups = math.gcd(self.num_groups, channels)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def group_mean(x: jax.Array) -> jax.Array:
            means = x.mean((1, 2)).reshape(-1, groups, channels // groups).mean(-1)
            return jnp.repeat(means, channels // groups, axis=-1)[:, None, None]

        x = x.astype(jnp.float32)
        mean = group_mean(x)
        variance = jnp.maximum(group_mean(jnp.square(x)) - jnp.square(mean), 0)
        x = (x - mean) * (lax.rsqrt(variance + 1e-5) * scale) + bias
        return x.astype(self.dtype)


class ConvNorm(Kernel):
    """Computes a square convolution without bias, dense or depthwise, then a normalisation.

    padding: 'same', as in TensorFlow, with BatchNorm's epsilon 1e-3, or 'symmetric' (size // 2 pixels on every side),
      as in PyTorch, with 1e-5. They pad alike unless the stride is 2 and the map's side even.
    norm: 'batch' (Ioffe & Szegedy 2015, arXiv 1502.03167; moments in float32, over the global batch; the
      running statistics move by a tenth a step, as in PyTorch: fine-tuning has few steps) or 'group', with 8 groups.
    folded: True if BatchNorm's factor is in the kernel, and only a bias is left of it.
    """

    size: int
    padding: str
    norm: str
    folded: bool
    stride: int = 1
    depthwise: bool = False

    @property
    def pads(self) -> Padding:
        """Returns the padding of the convolution."""
        return "SAME" if self.padding == "same" else self.size // 2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        x = self.apply_kernel(x)
        if self.norm == "group":
            return GroupNorm(self.dtype, num_groups=8, name="norm")(x)
        if self.folded:
            return self.add_bias(x)
        epsilon = BATCH_NORM_EPSILON[self.padding]
        return nn.BatchNorm(not train, momentum=0.9, epsilon=epsilon, dtype=self.dtype, name="norm")(x)

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features]."""
        shape = (self.size, self.size, 1 if self.depthwise else x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if self.depthwise:
            return depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.pads)
        return _conv_of(self, x, kernel)

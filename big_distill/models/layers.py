"""Convolution, pooling and normalisation: what the networks are made of.

On the CPU, XLA convolves onto maps of one or two pixels, which every ResNet reaches on small images, up to 90 times
slower than a matrix product would, and with a stride, from more than a cache holds, 1.2 to 1.5 times; its depthwise
convolutions, and the gradient of its max-pool, are about 10 times slower than shifted slices, whose own gradient is up
to 6 times slower for a batch than for its images in turn; inside a loop the gradients of a convolution are computed 40
times slower, unless they are convolutions in the layout of the forward pass.
So `conv`, `depthwise_conv` and `max_pool` have a second form, equal up to rounding.
`lax.platform_dependent` chooses between them when a program is lowered: one for TPU or GPU holds the plain operation
alone, even when it is compiled on a CPU.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

Padding = str | int
"""'SAME', 'VALID' or a number of pixels on every side."""
Pads = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right)) in pixels."""
_LAYOUT = ("NHWC", "HWIO", "NHWC")
STD_CONV_EPSILON = 1e-10
BATCH_NORM_EPSILON = {"same": 1e-3, "symmetric": 1e-5}
"""Of TensorFlow and of PyTorch, by their padding; see `ConvNorm`."""
_CACHE_VALUES = 1 << 23  # 32 MB of float32


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Cross-correlates `x` [B, H, W, C] with `kernel` [k, k, C, F]: [B, H', W', F]."""
    size = kernel.shape[0]
    pads = _pads(x, size, stride, padding)

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)

    def in_one_layout(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _conv_in_one_layout(x, kernel, stride, pads)

    def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
        patches = jnp.concatenate(_shifts(x, size, stride, pads, fill=0), axis=-1)
        return patches @ kernel.reshape(-1, kernel.shape[-1])

    height = (x.shape[1] + sum(pads[0]) - size) // stride + 1
    misses_cache = stride > 1 and x.size > _CACHE_VALUES and kernel.shape[-1] >= 256
    on_cpu = matmul if size == 1 or height <= 2 or misses_cache else in_one_layout  # else patches cost too much
    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=convolution)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_in_one_layout(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """A convolution whose gradients, too, are convolutions of [B, H, W, C] with [k, k, C, F]."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> Any:
    return _conv_in_one_layout(x, kernel, stride, pads), (x, kernel)


def _backward(stride: int, pads: Pads, inputs: tuple[jax.Array, jax.Array], grad: jax.Array) -> Any:
    x, kernel = inputs
    size, strides = kernel.shape[0], (stride, stride)
    of_x = lax.conv_general_dilated(
        grad,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        _transposed_pads(x, grad, size, stride, pads),
        lhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )
    of_kernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        grad.transpose(1, 2, 0, 3),
        (1, 1),
        [(low, high - rest) for (low, high), rest in zip(pads, _unused(x, grad, size, stride, pads), strict=True)],
        rhs_dilation=strides,
        dimension_numbers=_LAYOUT,
    )
    return of_x, of_kernel.transpose(1, 2, 0, 3)


_conv_in_one_layout.defvjp(_forward, _backward)


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Padding = "SAME") -> jax.Array:
    """Cross-correlates each channel of `x` [B, H, W, C] with its filter of `kernel` [k, k, 1, C]: [B, H', W', C]."""
    size, _, _, channels = kernel.shape
    pads = _pads(x, size, stride, padding)

    def convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            pads,
            dimension_numbers=_LAYOUT,
            feature_group_count=channels,
        )

    def shifted_sum(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return _shifted_sum(x, kernel, stride, pads)

    return lax.platform_dependent(x, kernel, cpu=shifted_sum, default=convolution)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _shifted_sum(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """A depthwise convolution whose gradients are computed one image after another, so that each stays in the cache."""
    shifts = _shifts(x.astype(jnp.float32), kernel.shape[0], stride, pads, fill=0)
    filters = kernel.astype(jnp.float32).reshape(len(shifts), -1)
    return functools.reduce(jnp.add, map(jnp.multiply, shifts, filters)).astype(x.dtype)


def _shifted_sum_forward(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> Any:
    return _shifted_sum(x, kernel, stride, pads), (x, kernel)


def _shifted_sum_backward(stride: int, pads: Pads, inputs: tuple[jax.Array, jax.Array], grad: jax.Array) -> Any:
    x, kernel = inputs
    size, holes = len(kernel), stride - 1
    transposed = _transposed_pads(x, grad, size, stride, pads)

    def add_image(of_kernel: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, grad = (part[None].astype(jnp.float32) for part in image)
        products = [(shift * grad).sum((0, 1, 2)) for shift in _shifts(x, size, stride, pads, fill=0)]
        spread = lax.pad(grad, 0.0, ((0, 0, 0), (0, 0, holes), (0, 0, holes), (0, 0, 0)))
        of_x = _shifted_sum(spread, jnp.flip(kernel, (0, 1)), 1, transposed)
        return of_kernel + jnp.stack(products).reshape(kernel.shape), of_x[0].astype(inputs[0].dtype)

    of_kernel, of_x = lax.scan(add_image, jnp.zeros(kernel.shape, jnp.float32), (x, grad))
    return of_x, of_kernel.astype(kernel.dtype)


_shifted_sum.defvjp(_shifted_sum_forward, _shifted_sum_backward)


def int8_conv(
    x: jax.Array,
    kernel: jax.Array,
    input_scale: jax.Array,
    kernel_scale: jax.Array,
    stride: int = 1,
    padding: Padding = "SAME",
) -> jax.Array:
    """`conv` in integers: of round(x / input_scale), clipped to [-127, 127], with an int8 kernel.

    Products are added up in int32, and on the CPU, where XLA is slow at that, in float32: the same integers up to 2^24,
    rounded above.

    Args:
      x: [B, H, W, C].
      kernel: int8 [k, k, C, F].
      input_scale: float32 [], what one step of the input is worth.
      kernel_scale: float32 [F], what one step of each filter is worth.
      stride, padding: as in `conv`.

    Returns:
      float32 [B, H', W', F].
    """
    steps = jnp.clip(jnp.round(x.astype(jnp.float32) / input_scale), -127, 127)
    pads = _pads(x, kernel.shape[0], stride, padding)

    def in_integers(steps: jax.Array, kernel: jax.Array) -> jax.Array:
        sums = lax.conv_general_dilated(
            steps.astype(jnp.int8),
            kernel,
            (stride, stride),
            pads,
            dimension_numbers=_LAYOUT,
            preferred_element_type=jnp.int32,
        )
        return sums.astype(jnp.float32)

    def in_floats(steps: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv(steps, kernel.astype(jnp.float32), stride, padding)

    sums = lax.platform_dependent(steps, kernel, cpu=in_floats, default=in_integers)
    return sums * (input_scale * kernel_scale)


def max_pool(x: jax.Array, size: int, stride: int, padding: Padding = "VALID") -> jax.Array:
    """Maximum over windows of `x` [B, H, W, C], padded with -inf: [B, H', W', C]."""
    pads = _pads(x, size, stride, padding)

    def reduce_window(x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (size, size), (stride, stride), pads)

    def tournament(x: jax.Array) -> jax.Array:
        return functools.reduce(_first_max, _shifts(x, size, stride, pads, fill=-jnp.inf))

    return lax.platform_dependent(x, cpu=tournament, default=reduce_window)


def _first_max(a: jax.Array, b: jax.Array) -> jax.Array:
    """The maximum; NaN if either is. In a tie `a` gets the gradient, as in XLA's max-pool (`jnp.maximum` halves it)."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _pads(x: jax.Array, size: int, stride: int, padding: Padding) -> Pads:
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    rows, columns = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), padding)
    return rows, columns


def _unused(x: jax.Array, out: jax.Array, size: int, stride: int, pads: Pads) -> tuple[int, ...]:
    """Of the padded `x`, the last rows and columns, which no window of a convolution onto `out` reaches."""
    sizes = zip(x.shape[1:3], out.shape[1:3], pads, strict=True)
    return tuple(n + sum(pad) - size - (m - 1) * stride for n, m, pad in sizes)


def _transposed_pads(x: jax.Array, out: jax.Array, size: int, stride: int, pads: Pads) -> Pads:
    """Of the convolution that takes the gradient of `out`, its pixels `stride` apart, to that of `x`."""
    unused = _unused(x, out, size, stride, pads)
    rows, columns = ((size - 1 - low, size - 1 - high + rest) for (low, high), rest in zip(pads, unused, strict=True))
    return rows, columns


def _shifts(x: jax.Array, size: int, stride: int, pads: Pads, fill: float) -> list[jax.Array]:
    """For each of the size * size positions in a window, row by row, what every window has there: [B, H', W', C]."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]


class Kernel(nn.Module):
    """A layer with a kernel. `variants.with_variants` may compute its `apply_kernel` in another way."""

    features: int
    dtype: str

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """The layer without its bias and normalisation."""
        raise NotImplementedError

    def add_bias(self, x: jax.Array) -> jax.Array:
        """[..., features] -> the same."""
        return x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)


class Dense(Kernel):
    """A matrix product, with a bias unless told otherwise."""

    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features]."""
        x = self.apply_kernel(x)
        return self.add_bias(x) if self.bias else x

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        return x.astype(self.dtype) @ kernel.astype(self.dtype)


class Conv(Kernel):
    """A square convolution, with a bias unless told otherwise."""

    size: int
    stride: int = 1
    padding: Padding = "SAME"
    bias: bool = True

    @property
    def pads(self) -> Padding:
        """Of the convolution."""
        return self.padding

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        x = self.apply_kernel(x)
        return self.add_bias(x) if self.bias else x

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        return conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.pads)


class StdConv(Kernel):
    """A square convolution with a standardised kernel, size // 2 pixels of zeros on every side and no bias.

    Each filter is brought to mean 0 and variance 1 over (h, w, in), in float32 (Qiao et al. 2019, "Weight
    Standardization", arXiv 1903.10520). Folded, the kernel is already standardised.
    """

    size: int
    stride: int = 1
    folded: bool = False

    @property
    def pads(self) -> Padding:
        """Of the convolution."""
        return self.size // 2

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        return self.apply_kernel(x)

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if not self.folded:
            kernel -= kernel.mean((0, 1, 2))
            kernel *= lax.rsqrt(jnp.square(kernel).mean((0, 1, 2)) + STD_CONV_EPSILON)
        return _conv_of(self, x, kernel)


def _conv_of(layer: StdConv | ConvNorm, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The dense convolution of a layer, in its dtype; in integers if `quantization.quantize` made its kernel int8."""
    if kernel.dtype != jnp.int8:
        return conv(x.astype(layer.dtype), kernel.astype(layer.dtype), layer.stride, layer.pads)
    input_scale = layer.param("input_scale", nn.initializers.ones, ())
    kernel_scale = layer.param("kernel_scale", nn.initializers.ones, (layer.features,))
    return int8_conv(x, kernel, input_scale, kernel_scale, layer.stride, layer.pads).astype(layer.dtype)


class GroupNorm(nn.Module):
    """Normalises each group of channels over the image, then scales and shifts (Wu & He 2018, arXiv 1803.08494).

    There are gcd(num_groups, C) groups: the usual 32, and fewer where 32 does not divide a narrow network's channels.
    Mean and mean square are taken in float32 and in one pass, over the image first and then over the group; flax's
    GroupNorm, which views the whole map as [B, H, W, groups, C / groups], takes up to ten times as long on the CPU.
    """

    dtype: str
    num_groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
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
    """A square convolution without bias, dense or depthwise, then a normalisation.

    padding: 'same', as in TensorFlow, with BatchNorm's epsilon 1e-3, or 'symmetric' (size // 2 pixels on every side),
      as in PyTorch, with 1e-5. They pad alike unless the stride is 2 and the map's side even.
    norm: 'batch' (Ioffe & Szegedy 2015, arXiv 1502.03167; moments in float32, over the global batch; the
      running statistics move by a tenth a step, as in PyTorch: fine-tuning has few steps) or 'group', with 8 groups.
    folded: BatchNorm's factor is in the kernel, and a bias is left of it.
    """

    size: int
    padding: str
    norm: str
    folded: bool
    stride: int = 1
    depthwise: bool = False

    @property
    def pads(self) -> Padding:
        """Of the convolution."""
        return "SAME" if self.padding == "same" else self.size // 2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]."""
        x = self.apply_kernel(x)
        if self.norm == "group":
            return GroupNorm(self.dtype, num_groups=8, name="norm")(x)
        if self.folded:
            return self.add_bias(x)
        epsilon = BATCH_NORM_EPSILON[self.padding]
        return nn.BatchNorm(not train, momentum=0.9, epsilon=epsilon, dtype=self.dtype, name="norm")(x)

    def apply_kernel(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H', W', features]."""
        shape = (self.size, self.size, 1 if self.depthwise else x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if self.depthwise:
            return depthwise_conv(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.pads)
        return _conv_of(self, x, kernel)

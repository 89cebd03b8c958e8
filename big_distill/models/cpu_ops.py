"""Computes convolutions and max-pool in the way that is fastest on the CPU, equal to XLA's own up to rounding.

XLA is slow on the CPU in these cases:

* A convolution onto maps of one or two pixels is up to 90 times slower than a matrix product. Every ResNet reaches
  such maps on small images.
* A convolution with a stride, of an input that no cache holds, is 1.2 to 1.5 times slower than a matrix product.
* Depthwise convolutions, and the gradient of max-pool, are about 10 times slower than shifted slices. The gradient of
  shifted slices is up to 6 times slower for a batch than for its images in turn.
* Inside a loop the gradients of a convolution are 40 times slower, unless they are convolutions in the layout of the
  forward pass.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
"""((top, bottom), (left, right)) in pixels."""
LAYOUT = ("NHWC", "HWIO", "NHWC")
_CACHE_VALUES = 1 << 23  # 32 MB of float32


def conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Cross-correlates `x` [B, H, W, C] with `kernel` [k, k, C, F]: [B, H', W', F]."""
    size = kernel.shape[0]
    height = (x.shape[1] + sum(pads[0]) - size) // stride + 1
    misses_cache = stride > 1 and x.size > _CACHE_VALUES and kernel.shape[-1] >= 256
    if size > 1 and height > 2 and not misses_cache:  # patches would cost too much
        return _conv_in_one_layout(x, kernel, stride, pads)
    patches = jnp.concatenate(_shifts(x, size, stride, pads, fill=0), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_in_one_layout(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolves `x` with `kernel`; its gradients, too, are convolutions of [B, H, W, C] with [k, k, C, F]."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=LAYOUT)


def _conv_forward(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> Any:
    return _conv_in_one_layout(x, kernel, stride, pads), (x, kernel)


def _conv_backward(stride: int, pads: Pads, inputs: tuple[jax.Array, jax.Array], grad: jax.Array) -> Any:
    x, kernel = inputs
    size, strides = kernel.shape[0], (stride, stride)
    of_x = lax.conv_general_dilated(
        grad,
        jnp.flip(kernel, (0, 1)).swapaxes(2, 3),
        (1, 1),
        _transposed_pads(x, grad, size, stride, pads),
        lhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    of_kernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        grad.transpose(1, 2, 0, 3),
        (1, 1),
        [(low, high - rest) for (low, high), rest in zip(pads, _unused(x, grad, size, stride, pads), strict=True)],
        rhs_dilation=strides,
        dimension_numbers=LAYOUT,
    )
    return of_x, of_kernel.transpose(1, 2, 0, 3)


_conv_in_one_layout.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> jax.Array:
    """Convolves each channel with its filter. Computes gradients image by image, so that each stays in the cache."""
    shifts = _shifts(x.astype(jnp.float32), kernel.shape[0], stride, pads, fill=0)
    filters = kernel.astype(jnp.float32).reshape(len(shifts), -1)
    return functools.reduce(jnp.add, map(jnp.multiply, shifts, filters)).astype(x.dtype)


def _depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int, pads: Pads) -> Any:
    return depthwise_conv(x, kernel, stride, pads), (x, kernel)


def _depthwise_backward(stride: int, pads: Pads, inputs: tuple[jax.Array, jax.Array], grad: jax.Array) -> Any:
    x, kernel = inputs
    size, holes = len(kernel), stride - 1
    transposed = _transposed_pads(x, grad, size, stride, pads)

    def add_image(of_kernel: jax.Array, image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, grad = (part[None].astype(jnp.float32) for part in image)
        products = [(shift * grad).sum((0, 1, 2)) for shift in _shifts(x, size, stride, pads, fill=0)]
        spread = lax.pad(grad, 0.0, ((0, 0, 0), (0, 0, holes), (0, 0, holes), (0, 0, 0)))
        of_x = depthwise_conv(spread, jnp.flip(kernel, (0, 1)), 1, transposed)
        return of_kernel + jnp.stack(products).reshape(kernel.shape), of_x[0].astype(inputs[0].dtype)

    of_kernel, of_x = lax.scan(add_image, jnp.zeros(kernel.shape, jnp.float32), (x, grad))
    return of_x, of_kernel.astype(kernel.dtype)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


def max_pool(x: jax.Array, size: int, stride: int, pads: Pads) -> jax.Array:
    """Computes the maximum over windows of `x` [B, H, W, C], padded with -inf: [B, H', W', C]."""
    return functools.reduce(_first_max, _shifts(x, size, stride, pads, fill=-jnp.inf))


def _first_max(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the maximum; NaN if either is NaN.

    In a tie `a` gets the gradient, as in XLA's max-pool; `jnp.maximum` halves it.
    """
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def _unused(x: jax.Array, out: jax.Array, size: int, stride: int, pads: Pads) -> tuple[int, ...]:
    """Counts the last rows and columns of the padded `x` that no window of a convolution onto `out` reaches."""
    sizes = zip(x.shape[1:3], out.shape[1:3], pads, strict=True)
    return tuple(n + sum(pad) - size - (m - 1) * stride for n, m, pad in sizes)


def _transposed_pads(x: jax.Array, out: jax.Array, size: int, stride: int, pads: Pads) -> Pads:
    """Computes the pads of the convolution from the gradient of `out`, its pixels `stride` apart, to that of `x`."""
    unused = _unused(x, out, size, stride, pads)
    rows, columns = ((size - 1 - low, size - 1 - high + rest) for (low, high), rest in zip(pads, unused, strict=True))
    return rows, columns


def _shifts(x: jax.Array, size: int, stride: int, pads: Pads, fill: float) -> list[jax.Array]:
    """Slices `x` once for each of the size * size positions in a window, row by row. A slice is [B, H', W', C]."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=fill)
    height, width = ((n - size) // stride * stride + 1 for n in x.shape[1:3])
    return [x[:, i : i + height : stride, j : j + width : stride] for i in range(size) for j in range(size)]

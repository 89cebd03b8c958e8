"""Checks the normalisations, and `conv`, `depthwise_conv` and `max_pool` in their plain and their CPU's forms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn
from jax import lax

from big_distill.models import layers


def doubles(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def test_group_norm_in_one_pass_survives_a_large_mean_and_bfloat16():
    x = np.random.default_rng(0).normal(loc=30, size=(2, 5, 4, 64)).astype(np.float32)
    params = {"scale": np.full(64, 2, np.float32), "bias": np.ones(64, np.float32)}
    got = layers.GroupNorm("float32").apply({"params": params}, x)
    np.testing.assert_allclose(got, reference.group_norm(doubles(x), params), atol=1e-3)
    half = jnp.bfloat16(x)
    got = layers.GroupNorm("bfloat16").apply({"params": params}, half)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(doubles(got), reference.group_norm(doubles(half), params), rtol=2**-8, atol=1e-3)


def plain_conv(x, kernel, stride, padding):
    pads = padding if isinstance(padding, str) else [(padding, padding)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_depthwise_conv(x, kernel, stride, padding):
    pads = padding if isinstance(padding, str) else [(padding, padding)] * 2
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def plain_max_pool(x, size, stride, padding):
    pads = padding if isinstance(padding, str) else [(padding, padding)] * 2
    return nn.max_pool(x, (size, size), (stride, stride), pads)


def assert_equal_and_lower(function, plain, *args):
    """Checks that outputs and gradients of both are equal here; returns the first's StableHLO for (cpu, tpu)."""

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradients(function, *args):
        out, pull = jax.vjp(function, *args)
        return out, *pull(jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))

    for got, want in zip(output_and_gradients(function, *args), output_and_gradients(plain, *args), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    traced = output_and_gradients.trace(function, *args)
    return (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu"))


@pytest.mark.parametrize(
    "shape, size, stride, padding",
    [((2, 3, 5, 6), 3, 2, 1), ((2, 6, 7, 3), 5, 1, "VALID"), ((2, 7, 7, 6), 1, 2, 0)],
    ids=["2px", "valid", "1x1"],
)
def test_conv_on_the_cpu_is_a_matmul_with_the_same_numbers(shape, size, stride, padding):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape).astype("f"), rng.normal(size=(size, size, shape[-1], 4)).astype("f")
    conv = functools.partial(layers.conv, stride=stride, padding=padding)
    plain = functools.partial(plain_conv, stride=stride, padding=padding)
    cpu, tpu = assert_equal_and_lower(conv, plain, x, kernel)
    assert "stablehlo.dot_general" in cpu and "stablehlo.convolution" not in cpu
    assert "stablehlo.dot_general" not in tpu and "stablehlo.convolution" in tpu


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_gradients_of_a_conv_on_the_cpu_are_convolutions_in_one_layout(size, stride, padding):
    """XLA does so itself, but not in a loop. No window reads some of the images' rows and columns."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 13, 16, 3)).astype("f"), rng.normal(size=(size, size, 3, 4)).astype("f")
    conv = functools.partial(layers.conv, stride=stride, padding=padding)
    plain = functools.partial(plain_conv, stride=stride, padding=padding)
    cpu, tpu = assert_equal_and_lower(conv, plain, x, kernel)
    layouts = [re.findall(r"dim_numbers = (.*?), window", text) for text in (cpu, tpu)]
    assert layouts[0] == ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"] * 3
    assert len(layouts[1]) == 3 and layouts[1][1:] != layouts[0][1:]


@pytest.mark.parametrize(
    "shape, size, stride, padding",
    [((2, 7, 6, 3), 5, 2, "SAME"), ((2, 1, 1, 4), 3, 2, "SAME"), ((2, 6, 5, 3), 3, 2, 1)],
    ids=["same", "1px", "symmetric"],
)
def test_depthwise_conv_on_the_cpu_is_a_sum_with_the_same_numbers(shape, size, stride, padding):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=shape).astype("f"), rng.normal(size=(size, size, 1, shape[-1])).astype("f")
    conv = functools.partial(layers.depthwise_conv, stride=stride, padding=padding)
    plain = functools.partial(plain_depthwise_conv, stride=stride, padding=padding)
    cpu, tpu = assert_equal_and_lower(conv, plain, x, kernel)
    assert "stablehlo.convolution" not in cpu and "stablehlo.convolution" in tpu


def test_depthwise_conv_rounds_to_bfloat16_once():
    rng = np.random.default_rng(0)
    x, kernel = jnp.bfloat16(rng.normal(size=(2, 4, 4, 8))), jnp.bfloat16(rng.normal(size=(2, 2, 1, 8)))
    half = layers.depthwise_conv(x, kernel)  # under jit XLA may skip roundings
    exact = reference.depthwise_conv(doubles(x), doubles(kernel), 1, "SAME")
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(doubles(half), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    "batch, stride, features, operation",
    [(1, 1, 1, "convolution"), (65, 2, 256, "dot_general"), (64, 2, 256, "convolution"), (65, 2, 255, "convolution"),
     (65, 1, 256, "convolution")],
)  # fmt: skip
def test_conv_onto_more_than_two_pixels_is_a_matmul_only_from_a_large_map_with_a_stride(
    batch, stride, features, operation
):
    x, kernel = jax.ShapeDtypeStruct((batch, 32, 32, 128), "f"), jax.ShapeDtypeStruct((3, 3, 128, features), "f")
    traced = jax.jit(functools.partial(layers.conv, stride=stride)).trace(x, kernel)
    other = "convolution" if operation == "dot_general" else "dot_general"
    cpu, tpu = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "tpu"))
    assert f"stablehlo.{operation}" in cpu and f"stablehlo.{other}" not in cpu
    assert "stablehlo.convolution" in tpu and "stablehlo.dot_general" not in tpu


@pytest.mark.parametrize("size, stride, padding", [(2, 1, "SAME"), (3, 2, 1)])
def test_max_pool_on_the_cpu_has_the_same_gradient_in_ties(size, stride, padding):
    x = np.random.default_rng(0).integers(-2, 2, size=(3, 7, 6, 4)).astype(np.float32)  # most windows are ties
    pool = functools.partial(layers.max_pool, size=size, stride=stride, padding=padding)
    plain = functools.partial(plain_max_pool, size=size, stride=stride, padding=padding)
    cpu, tpu = assert_equal_and_lower(pool, plain, x)
    assert "stablehlo.select_and_scatter" not in cpu and "stablehlo.reduce_window" not in cpu
    assert "stablehlo.select_and_scatter" in tpu and "stablehlo.select " not in tpu


@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_max_pool_keeps_nan(where):
    x = np.zeros((1, 2, 2, 1), np.float32)
    x.flat[where] = np.nan
    assert np.isnan(layers.max_pool(x, 2, 2)).all()

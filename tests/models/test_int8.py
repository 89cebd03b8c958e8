"""Checks convolutions in 8 bits: the integers, the layers that have them, and the loss of a whole network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from tiers import cases

from big_distill.config import ModelConfig
from big_distill.models import build, cast, efficientnet_lite, fold, input_ranges, layers, quantize
from big_distill.models.inverted_residual import Unit

K = 5
SHAPE = (4, 40, 40, 3)
BIT = ModelConfig("bit", blocks=(1, 1), width=0.25)
LITE = ModelConfig("efficientnet_lite0")


@pytest.fixture(autouse=True)
def two_units(monkeypatch):
    units = Unit(32, 8, 3, 1, "relu6"), Unit(48, 8, 3, 2, "relu6")
    monkeypatch.setattr(efficientnet_lite, "units", lambda *_: units)


def random_variables(model):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if "var" in jax.tree_util.keystr(path):
            return rng.uniform(0.3, 2, leaf.shape).astype("f")
        return (rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype("f")

    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, jnp.float32))
    return jax.tree.map_with_path(draw, shapes)


def frozen(config):
    """Returns (the folded network, its variables, a batch of images)."""
    make = functools.partial(build.__wrapped__, config, K, "float32")
    variables = fold(config, random_variables(make()))
    rng = np.random.default_rng(1)
    image = 2 * rng.normal(size=(SHAPE[0], 1, 1, SHAPE[3])) + rng.normal(size=SHAPE)  # noise alone averages out
    return make(folded=True), variables, image.astype("f")


@pytest.mark.parametrize("size, stride, padding", [(3, 2, 1), (1, 2, "SAME"), (3, 1, "SAME")])
def test_int8_conv_adds_up_integers(size, stride, padding):
    rng = np.random.default_rng(0)
    x = (100 * rng.normal(size=(2, 7, 6, 5))).astype("f")
    kernel = rng.integers(-127, 128, (size, size, 5, 3), np.int8)
    input_scale, kernel_scale = np.float32(0.5), np.array([0.1, 2, 0.03], "f")
    got = jax.jit(functools.partial(layers.int8_conv, stride=stride, padding=padding))
    steps = np.clip(np.round(x / 0.5), -127, 127)
    assert (np.abs(steps) == 127).any(), "nothing is clipped"
    sums = reference.conv(steps, {"kernel": kernel.astype(float)}, stride, padding)
    assert np.abs(sums).max() < 2**24 and (sums == sums.round()).all()
    args = x, kernel, input_scale, kernel_scale
    np.testing.assert_allclose(got(*args), sums * 0.5 * kernel_scale.astype(float), rtol=1e-6)
    cpu, tpu = (got.trace(*args).lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu"))
    (convolution,) = [line for line in tpu.splitlines() if "stablehlo.convolution" in line]
    assert convolution.count("xi8>") == 2 and convolution.count("xi32>") == 1, "int8 x int8 -> int32"
    assert "xi32>" not in cpu


def test_both_operations_have_the_same_integers(monkeypatch):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 6, 8)).astype("f"), rng.integers(-127, 128, (3, 3, 8, 4), np.int8)
    args = x, kernel, np.float32(0.03), np.ones(4, "f")
    floats = layers.int8_conv(*args)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *operands, cpu, default: default(*operands))
    np.testing.assert_array_equal(floats, layers.int8_conv(*args))


@pytest.mark.parametrize("config", cases(BIT, full=[LITE]), ids=["bit", "lite"])
def test_logits_are_nearly_those_of_floats(config):
    model, variables, image = frozen(config)
    ranges = {name: float(value) for name, value in input_ranges(model, variables, image).items()}
    apply = jax.jit(functools.partial(model.apply, train=False))
    want = np.asarray(apply(variables, image)[0].logits)
    got = np.asarray(apply(quantize(variables, ranges), image)[0].logits)
    error = np.abs(got - want).mean() / want.std()
    assert 1e-5 < error < 0.02
    halved = quantize(variables, {name: value / 8 for name, value in ranges.items()})
    assert np.abs(apply(halved, image)[0].logits - want).mean() / want.std() > 3 * error, "the ranges do not matter"


def test_ranges_are_the_largest_inputs():
    model, variables, image = frozen(BIT)
    ranges = input_ranges(model, variables, image)
    units = [f"block{i}/unit01/{conv}" for i in (1, 2) for conv in ("conv_proj", "conv1", "conv2", "conv3")]
    assert sorted(ranges) == sorted(units), "all but the root's"
    assert ranges["block1/unit01/conv1"] == ranges["block1/unit01/conv_proj"]
    unit, p = variables["params"]["block1"]["unit01"], variables["params"]
    root = reference.conv(image.astype(float), p["root_block"]["conv_root"], 2, 3)
    pooled = reference.max_pool(root, 3, 2, 1)
    largest = reference.relu(reference.group_norm(pooled, unit["gn1"])).max()
    assert ranges["block1/unit01/conv1"] == pytest.approx(largest, rel=1e-4)


def test_what_becomes_integers():
    model, variables, image = frozen(LITE)
    ranges = {name: float(value) for name, value in input_ranges(model, variables, image).items()}
    params = quantize(variables, ranges)["params"]
    assert {name for name in ranges if "depthwise" in name} == set() and "stem" not in ranges
    assert {x.dtype.name for x in jax.tree.leaves(params["head"])} == {"float32"}
    before, after = variables["params"]["unit02"]["expand"], params["unit02"]["expand"]
    assert after["kernel"].dtype == np.int8 and np.abs(after["kernel"]).max(axis=(0, 1, 2)).tolist() == [127] * 48
    steps = before["kernel"] / after["kernel_scale"]
    np.testing.assert_allclose(after["kernel"], steps, rtol=0, atol=0.5001)
    np.testing.assert_array_equal(after["bias"], before["bias"])
    assert after["input_scale"] == np.float32(ranges["unit02/expand"] / 127)
    assert variables["params"]["unit02"]["expand"]["kernel"].dtype == np.float32, "the argument changed"


def test_shapes_alone_are_quantized_and_cast_too():
    model, variables, image = frozen(LITE)
    ranges = input_ranges(model, variables, image)

    def abstract(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)

    got = cast(quantize(abstract(variables), dict.fromkeys(ranges)), "bfloat16")
    assert got == abstract(cast(quantize(variables, ranges), "bfloat16"))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {"int8", "bfloat16", "float32"}
    with pytest.raises(ValueError, match="no convolutions: stem/norm"):
        quantize(abstract(variables), {"stem/norm": 1.0})


def test_a_filter_of_zeros_and_a_silent_input_stay_zero():
    params = {"conv": {"kernel": np.zeros((1, 1, 4, 2), "f"), "bias": np.ones(2, "f")}}
    made = quantize({"params": params}, {"conv": 0.0})["params"]["conv"]
    out = layers.int8_conv(np.zeros((1, 2, 2, 4), "f"), made["kernel"], made["input_scale"], made["kernel_scale"])
    np.testing.assert_array_equal(out, 0)

"""Checks small EfficientNet-Lites, MobileNetV3s and ViTs against NumPy in float64, and the real ones' sizes."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from big_distill.config import ModelConfig
from big_distill.models import build, efficientnet_lite, layers, mobilenet_v3, vit
from big_distill.models.inverted_residual import Unit
from big_distill.parallel import sharding

K = 5
SHAPE = (3, 20, 13, 3)
LITE_UNITS = (Unit(32, 8, 3, 1, "relu6"), Unit(48, 16, 5, 2, "relu6"), Unit(96, 16, 3, 1, "relu6"))
MOBILE_UNITS = (Unit(16, 24, 3, 2, "relu"), Unit(72, 24, 3, 1, "hard_swish", 16))


def lite(variables, x, padding, train):
    conv_norm = functools.partial(reference.conv_norm, padding=padding, train=train)
    return reference.efficientnet_lite(variables, x, [1, 2, 1], conv_norm)


def mobile(variables, x, padding, train):
    conv_norm = functools.partial(reference.conv_norm, padding=padding, train=train)
    activations = [reference.relu, reference.hard_swish]
    return reference.mobilenet_v3(variables, x, [2, 1], activations, conv_norm)


NETWORKS = {  # id -> (config, shape of the images, reference with `train`)
    "lite": (ModelConfig("efficientnet_lite1"), SHAPE, functools.partial(lite, padding="same")),
    "lite_symmetric": (
        ModelConfig("efficientnet_lite0", padding="symmetric"),
        SHAPE,
        functools.partial(lite, padding="symmetric"),
    ),
    "mobile": (ModelConfig("mobilenet_v3_large"), SHAPE, functools.partial(mobile, padding="same")),
    "mobile_group": (
        ModelConfig("mobilenet_v3_large", norm="group", padding="symmetric"),
        SHAPE,
        functools.partial(mobile, padding="symmetric"),
    ),
    "vit": (
        ModelConfig("vit_small", patch_size=4),
        (3, 12, 8, 3),
        lambda variables, x, train: reference.vit(variables["params"], x, 4),
    ),
}
each_network = pytest.mark.parametrize("config, shape, expected", NETWORKS.values(), ids=NETWORKS)


@pytest.fixture
def small(monkeypatch):
    """Returns a `build` of networks with few and narrow blocks and without dropout."""
    monkeypatch.setattr(efficientnet_lite, "units", lambda *_: LITE_UNITS)
    monkeypatch.setattr(efficientnet_lite, "DROPOUT", dict.fromkeys(efficientnet_lite.DROPOUT, 0.0))
    monkeypatch.setattr(mobilenet_v3, "units", lambda *_: MOBILE_UNITS)
    monkeypatch.setattr(mobilenet_v3, "DROPOUT", 0.0)
    monkeypatch.setattr(vit, "SIZES", {"vit_small": (12, 2, 3)})
    return build.__wrapped__


def shapes(model, shape):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


def random_variables(abstract):
    """Draws parameters and statistics, none of them zero or one."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        if "var" in name:
            return rng.uniform(0.3, 3, leaf.shape).astype("f")
        if "embedding" in name or "cls" in name:  # small, as at the start: the first LayerNorm's epsilon shows
            return rng.normal(scale=0.02, size=leaf.shape).astype("f")
        fan_in = int(np.prod(leaf.shape[:-1]))
        return (("scale" in name) + 1.5 * rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype("f")

    return jax.tree.map_with_path(draw, abstract)


def random_images(shape):
    return np.random.default_rng(1).normal(size=shape).astype("f")


def doubles(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def assert_near(logits, want, tolerance=1e-4):
    assert logits.shape == want.shape and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, want, rtol=0, atol=tolerance * want.std(0).mean())


@each_network
def test_forward_is_that_of_numpy_in_float64(small, config, shape, expected):
    """This holds with running statistics, and with the batch's."""
    model, image = small(config, K, "float32"), random_images(shape)
    variables = random_variables(shapes(model, shape))
    both = jax.jit(lambda v: [model.apply(v, image, train=train)[0].logits for train in (False, True)])
    for train, logits in zip((False, True), both(variables), strict=True):
        assert_near(logits, expected(doubles(variables), doubles(image), train=train))


@pytest.mark.parametrize("name", ["mobile", "vit"])
def test_gradient_is_that_of_numpy_in_float64(small, name):
    """The gradient is checked along one random direction, by central differences of the reference."""
    config, shape, expected = NETWORKS[name]
    model, image = small(config, K, "float32"), random_images(shape)
    variables = random_variables(shapes(model, shape))

    @jax.jit
    @jax.grad
    def gradient(params):
        return model.apply({**variables, "params": params}, image, train=True)[0].logits.sum()

    params = variables["params"]
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), params)

    def moved(distance):
        there = jax.tree.map(lambda a, d: a + distance * d, doubles(params), direction)
        return expected({**doubles(variables), "params": there}, doubles(image), train=True).sum()

    slopes = jax.tree.map(np.vdot, doubles(gradient(params)), direction)
    np.testing.assert_allclose(sum(jax.tree.leaves(slopes)), (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=2e-3)


@pytest.mark.parametrize("name", ["lite", "mobile_group", "vit"])
def test_bfloat16_computes_near_float32_and_keeps_variables_and_logits_in_float32(small, name):
    config, shape, expected = NETWORKS[name]
    model, image = small(config, K, "bfloat16"), random_images(shape)
    abstract = shapes(model, shape)
    variables = random_variables(abstract)
    full = expected(doubles(variables), doubles(image), train=False)
    half = jax.jit(functools.partial(model.apply, train=False))(variables, image)[0].logits
    assert half.dtype == jnp.float32 and {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    assert 1e-4 < np.abs(half - full).mean() / full.std() < 0.05
    assert np.any(half != half.astype(jnp.bfloat16)), "the logits were rounded to bfloat16"


def test_batch_norm_is_over_the_global_batch_and_moves_the_statistics_by_a_tenth(small, eight_devices):
    shape = (8, 5, 5, 3)
    model, image = small(ModelConfig("efficientnet_lite0"), K, "float32"), 3 + random_images(shape)
    variables = random_variables(shapes(model, shape))
    mesh = sharding.make_mesh()
    split = jax.device_put(image, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))
    assert len(split.addressable_shards) == 8
    step = jax.jit(functools.partial(model.apply, train=True))
    outputs, stats = step(jax.device_put(variables, sharding.replicated(mesh)), split)
    logits = outputs.logits
    assert_near(logits, lite(doubles(variables), doubles(image), "same", train=True), 1e-3)

    x = reference.conv(doubles(image), {"kernel": doubles(variables["params"]["stem"]["kernel"])}, 2)
    before, after = variables["batch_stats"]["stem"]["norm"], stats["stem"]["norm"]
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * x.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * x.var((0, 1, 2)), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize(
    "name, size, expected",  # expected values are timm's
    [
        ("efficientnet_lite0", 224, 4_652_008),
        ("mobilenet_v3_large", 224, 5_483_032),
        ("vit_small", 224, 22_050_664),
        ("vit_base", 224, 86_567_656),
    ],
)
def test_number_of_parameters(name, size, expected):
    params = shapes(build(ModelConfig(name), 1000, "float32"), (1, size, size, 3))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_units_of_the_real_networks():
    lite0, lite2 = (efficientnet_lite.units(f"efficientnet_lite{i}", (), 1.0) for i in (0, 2))
    assert [unit.stride for unit in lite0] == [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    assert [unit.size for unit in lite0] == [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    stages = itertools.groupby(unit.features for unit in lite2)
    assert [(features, len(list(stage))) for features, stage in stages] == [
        (16, 1), (24, 3), (48, 3), (88, 4), (120, 4), (208, 5), (352, 1),
    ]  # fmt: skip
    large = mobilenet_v3.units((), 1.0)
    assert [unit.stride for unit in large] == [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]
    assert [unit.activation for unit in large] == ["relu"] * 6 + ["hard_swish"] * 9
    assert [unit.size for unit in large] == [3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5]


def test_blocks_and_width_make_other_sizes():
    lite = efficientnet_lite.units("efficientnet_lite0", (1, 1, 1, 1, 1, 1, 2), 0.25)
    assert [(unit.features, unit.stride) for unit in lite] == [
        (8, 1), (8, 2), (16, 2), (24, 2), (32, 1), (48, 2), (80, 1), (80, 1),
    ]  # fmt: skip
    mobile = mobilenet_v3.units((2, 1, 1, 1, 1, 1), 0.5)
    assert mobile[:3] == (Unit(8, 8, 3, 1, "relu"),) * 2 + (Unit(32, 16, 3, 2, "relu"),)
    assert mobile[-1] == Unit(336, 80, 5, 2, "hard_swish", 88)
    for config in (
        ModelConfig("efficientnet_lite0", blocks=(1,) * 7, width=0.125),
        ModelConfig("mobilenet_v3_large", width=0.3),
    ):
        params = shapes(build(config, K, "float32"), (1, 32, 32, 3))["params"]
        assert params["head"]["kernel"].shape == (1280, K)


@pytest.mark.parametrize("name, num_stages", [("efficientnet_lite0", 7), ("mobilenet_v3_large", 6)])
def test_dropout_is_before_the_head_and_in_training_alone(name, num_stages):
    """The program has one draw: a number for each example and feature."""
    model = build(ModelConfig(name, blocks=(1,) * num_stages, width=0.125), K, "float32")
    shape = (2, 32, 32, 3)

    def drawn(train):
        def apply(variables, image):
            return model.apply(variables, image, train=train, rng=jax.random.key(0))

        jaxpr = str(jax.make_jaxpr(apply)(shapes(model, shape), jax.ShapeDtypeStruct(shape, jnp.float32)))
        return re.findall(r"random_bits\[.*?shape=\((.*?)\)", jaxpr, re.DOTALL)

    assert drawn(train=False) == [] and drawn(train=True) == ["2, 1280"]


def test_mobilenet_with_group_norm_has_eight_groups_and_no_statistics():
    model = build(ModelConfig("mobilenet_v3_large", norm="group"), 10, "float32")
    assert set(shapes(model, (1, 32, 32, 3))) == {"params"}
    x, params = random_images((2, 4, 4, 24)), {"scale": np.ones(24, "f"), "bias": np.zeros(24, "f")}
    got = layers.GroupNorm("float32", num_groups=8).apply({"params": params}, x)
    want = x.reshape(2, 16, 8, 3)
    want = (want - want.mean((1, 3), keepdims=True)) / want.std((1, 3), keepdims=True)
    np.testing.assert_allclose(got, want.reshape(x.shape), atol=1e-3)


def test_vit_has_a_position_for_each_patch_and_the_class():
    model = build(ModelConfig("vit_small", patch_size=8), 10, "float32")
    assert shapes(model, (1, 32, 24, 3))["params"]["pos_embedding"].shape == (1, 4 * 3 + 1, 384)

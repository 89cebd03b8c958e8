"""Checks the small networks and BiT against NumPy in float64, and what `build` promises."""

import functools
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn

from big_distill.config import ModelConfig
from big_distill.errors import ConfigError
from big_distill.models import bit, build, from_linen

K = 5
TINY = {  # id -> (config, shape of the images, reference)
    "mlp": (ModelConfig("mlp", features=(30, 10)), (4, 6, 5, 1), reference.mlp),
    "lenet5": (ModelConfig("lenet5"), (3, 20, 16, 1), reference.lenet5),
    "cnn": (ModelConfig("cnn", features=(4, 6)), (3, 8, 11, 3), reference.cnn),
    "six_layer_cnn": (ModelConfig("six_layer_cnn"), (3, 9, 8, 3), reference.six_layer_cnn),
    "bit": (
        ModelConfig("bit", blocks=(2, 1), width=0.5),
        (3, 30, 21, 3),
        functools.partial(reference.bit, root_pool="-inf"),
    ),
    "bit_zero_fraction": (
        ModelConfig("bit", blocks=(1,), width=0.3, root_pool="zero"),
        (3, 24, 16, 1),
        functools.partial(reference.bit, root_pool="zero"),
    ),
}
each_network = pytest.mark.parametrize("config, shape, expected", TINY.values(), ids=TINY)


def shapes(config, shape, num_classes=K):
    """Returns the parameters' ShapeDtypeStructs."""
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(build(config, num_classes, "float32").init, jax.random.key(0), image)["params"]


def random_params(config, shape):
    """Draws parameters, none of them zero, and images."""
    rng = np.random.default_rng(0)

    def draw(a):
        fan_in = int(np.prod(a.shape[:-1]))
        return rng.normal(size=a.shape).astype(np.float32) / np.sqrt(fan_in)

    return jax.tree.map(draw, shapes(config, shape)), rng.normal(size=shape).astype(np.float32)


def doubles(tree):
    return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def assert_near(logits, want):
    """Checks that logits are equal up to rounding, relative to how much logits differ between images."""
    assert logits.shape == want.shape and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-3 * want.std(0).mean())


@each_network
def test_forward_and_gradient_are_those_of_numpy_in_float64(config, shape, expected):
    """The gradient is checked along one random direction, by central differences of the reference."""
    params, image = random_params(config, shape)
    apply = build(config, K, "float32").apply

    def loss(params):
        logits = apply({"params": params}, image, train=True)[0].logits
        return logits.sum(), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert_near(logits, expected(doubles(params), doubles(image)))
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), jax.tree_util.keystr(path)

    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda a: rng.normal(size=a.shape), params)

    def moved(distance):
        return expected(jax.tree.map(lambda a, d: a + distance * d, doubles(params), direction), doubles(image)).sum()

    slope = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(slope, (moved(1e-6) - moved(-1e-6)) / 2e-6, rtol=1e-3)


@pytest.mark.full
@each_network
def test_bfloat16_computes_near_float32_and_keeps_parameters_and_logits_in_float32(config, shape, expected):
    params, image = random_params(config, shape)
    full = expected(doubles(params), doubles(image))
    model = build(config, K, "bfloat16")
    half = model.apply({"params": params}, image, train=False)[0].logits  # under jit XLA may skip roundings
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - full).mean() / full.std() < 0.05
    assert np.any(half != half.astype(jnp.bfloat16)), "the logits were rounded to bfloat16"
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), image))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


def test_root_pool_decides_what_pads_negative_values():
    params, image = doubles(random_params(*TINY["bit"][:2]))
    root = reference.std_conv(image, params["root_block"]["conv_root"], stride=2)
    inf, zero = (reference.max_pool(root, 3, 2, 1, value) for value in (-np.inf, 0))
    assert np.any(inf[:, 0] < 0) and np.all(zero[:, 0] >= 0)
    for pool, want in (("-inf", inf), ("zero", zero)):
        got = bit.Root(root.shape[-1], pool, "float32").apply({"params": params["root_block"]}, jnp.float32(image))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "config, channels, num_classes, expected",
    [
        (ModelConfig("mlp", features=(300, 100)), 1, 10, 266_610),  # Han et al. 2016
        (ModelConfig("lenet5"), 1, 10, 431_080),  # Caffe's model zoo
        (ModelConfig("cnn", features=(256, 512)), 1, 10, 1_433_610),  # Keras's example prints this count and the next
        (ModelConfig("cnn", features=(16, 32)), 1, 10, 20_490),
        (ModelConfig("bit", depth=50), 3, 1000, 25_549_352),  # Big Transfer
        (ModelConfig("bit", depth=50, width=1.0), 3, 1000, 25_549_352),
    ],
)
def test_number_of_parameters(config, channels, num_classes, expected):
    params = shapes(config, (1, 28, 28, channels), num_classes)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_six_layer_cnn_has_six_layers():
    assert list(shapes(ModelConfig("six_layer_cnn"), (1, 32, 32, 3))) == [f"conv{i}" for i in range(1, 5)] + [
        "fc1",
        "head",
    ]


def test_bit_names_its_parameters_as_the_distillation_release():
    params = shapes(ModelConfig("bit", depth=26), (1, 64, 64, 3))
    names = {jax.tree_util.keystr(p, simple=True, separator="/"): a.shape for p, a in jax.tree.leaves_with_path(params)}
    units = {re.match(r"block\d/unit\d\d", name)[0] for name in names if name.startswith("block")}
    assert len(units) == sum(bit.BLOCKS[26])
    expected = {"root_block/conv_root/kernel", "norm-pre-head/scale", "norm-pre-head/bias", "head/kernel", "head/bias"}
    for unit in units:
        convs = ("conv1", "conv2", "conv3", *(["conv_proj"] if unit.endswith("unit01") else []))
        expected |= {f"{unit}/{name}/kernel" for name in convs}
        expected |= {f"{unit}/{name}/{kind}" for name in ("gn1", "gn2", "gn3") for kind in ("scale", "bias")}
    assert names.keys() == expected
    assert names["root_block/conv_root/kernel"] == (7, 7, 3, 64)
    assert names["block2/unit01/conv_proj/kernel"] == (1, 1, 256, 512)
    assert names["block4/unit02/conv2/kernel"] == (3, 3, 512, 512)
    assert names["norm-pre-head/scale"] == (2048,)


@pytest.mark.parametrize("width, features", [(1.0, 64), (2.0, 128), (0.3, 19), (0.01, 1)])
def test_width_of_bit_multiplies_its_channels(width, features):
    params = shapes(ModelConfig("bit", blocks=(1, 1), width=width), (1, 8, 8, 3))
    assert params["root_block"]["conv_root"]["kernel"].shape == (7, 7, 3, features)
    assert params["block2"]["unit01"]["conv3"]["kernel"].shape == (1, 1, 2 * features, 8 * features)


def test_bit_starts_from_zero_logits_and_its_parameters_are_plain_dicts():
    model = build(ModelConfig("bit", blocks=(1,), width=0.1), K, "float32")
    variables = jax.jit(model.init)(jax.random.key(0, impl="rbg"), jnp.ones((1, 4, 4, 3)))  # rbg compiles sooner
    assert type(variables) is dict and type(variables["params"]["block1"]["unit01"]) is dict
    assert np.all(variables["params"]["head"]["kernel"] == 0)
    assert np.any(variables["params"]["block1"]["unit01"]["conv3"]["kernel"] != 0)


def test_build_returns_the_same_object_for_the_same_arguments():
    config = ModelConfig("mlp", features=(3,))
    assert build(config, K, "float32") is build(ModelConfig("mlp", features=(3,)), K, "float32")
    assert build(config, K, "float32") is not build(config, K, "bfloat16")


class WithState(nn.Module):
    """Computes BatchNorm and dropout, which these networks lack and `Model` allows."""

    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(image.reshape(len(image), -1))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)


@pytest.fixture
def own(monkeypatch):
    """Makes an importable module of a user's own functions."""
    module = types.ModuleType("own_models")
    module.net = lambda config, num_classes, dtype: from_linen(WithState(num_classes, dtype))
    module.forgot = lambda config, num_classes, dtype: WithState(num_classes, dtype)
    monkeypatch.setitem(sys.modules, "own_models", module)


def test_batch_stats_and_dropout_of_the_users_own_model(own):
    model = build(ModelConfig("own_models:net"), K, "bfloat16")
    image = np.random.default_rng(0).normal(loc=3, size=(16, 2, 2, 1)).astype("f")
    variables = model.init(jax.random.key(0), image)
    (mean,) = (leaf for leaf in jax.tree.leaves(variables["batch_stats"]) if not leaf.any())

    outputs, same = model.apply(variables, image, train=False)
    logits = outputs.logits
    assert logits.dtype == jnp.float32
    assert jax.tree.all(jax.tree.map(np.array_equal, same, variables["batch_stats"]))

    train = functools.partial(model.apply, variables, image, train=True)
    one, stats = train(rng=jax.random.key(1))
    two, _ = train(rng=jax.random.key(2))
    assert np.any(one.logits != two.logits)
    np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], mean + 0.5 * image.mean(0).ravel(), rtol=1e-5)


def test_batch_stats_are_empty_without_any():
    model = build(ModelConfig("mlp", features=(3,)), K, "float32")
    image = jnp.ones((2, 2, 2, 1))
    variables = model.init(jax.random.key(0), image)
    assert "batch_stats" not in variables
    assert model.apply(variables, image, train=True)[1] == {}
    assert model.apply({**variables, "batch_stats": {}}, image, train=True)[1] == {}


@pytest.mark.parametrize(
    "name, message",
    [
        ("no_such_module:net", "model.name='no_such_module:net'"),
        ("own_models:nte", "'nte'"),
        ("own_models:forgot", "expected a Model, got WithState"),
    ],
)
def test_errors_of_the_users_own_model_are_one_line(own, name, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        build(ModelConfig(name), K, "float32")
    assert "\n" not in str(error.value)

"""Checks factored layers and rounded inputs, in every family."""

import dataclasses

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest

from big_distill import models, weights
from big_distill.compress import low_rank
from big_distill.config import ModelConfig
from big_distill.errors import ConfigError
from big_distill.models import build, fold, variants, vit
from big_distill.training import initial

IMAGE = jax.ShapeDtypeStruct((2, 20, 20, 1), jnp.float32)
LENET = ModelConfig("lenet5")


@pytest.fixture(autouse=True)
def small_vit(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "vit_small", (12, 2, 3))


def logits(network, pixels=None, folded=False):
    example_pixels = np.random.default_rng(1).random((3, *network.architecture.input_shape[1:]), np.float32)
    model = network.architecture.build("float32", folded=folded)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False)[0].logits)
    return np.asarray(apply(network.variables, example_pixels if pixels is None else pixels))


def factored(network, energy):
    """Factors all kernels that can have factors, also where that is not cheaper."""
    arrays = weights.arrays_of(network)
    ranks = {}
    for name, (layer, can) in initial._dense_layers(network).items():
        if can:
            ranks[name] = low_rank.ranks_of_energy(low_rank.spectra(layer.kernel), energy)
            del arrays[f"params/{name}/kernel"]
            for factor, value in low_rank.factorize(layer.kernel, ranks[name]).items():
                arrays[f"params/{name}/{factor}/kernel"] = value
    return weights.rebuilt(network, arrays, ranks=models.format_ranks(ranks))


@pytest.mark.parametrize("family", networks.EACH)
def test_factors_of_full_rank_compute_the_same(family):
    network = networks.make_example(family).network
    whole = factored(network, 1.0)
    assert len(whole.architecture.model.ranks) >= 2
    want, got = logits(network), logits(whole)
    np.testing.assert_allclose(got, want, rtol=0, atol=1.5e-4 * want.std())  # 1.02e-4 on one CPU, by rounding
    assert np.abs(logits(factored(network, 0.5)) - want).max() > 1e-2 * want.std(), "the ranks do not matter"
    frozen = dataclasses.replace(whole, variables=fold(whole.architecture.model, whole.variables))
    np.testing.assert_allclose(logits(frozen, folded=True), want, rtol=0, atol=1e-4 * want.std())


@pytest.mark.full
def test_a_range_is_a_running_mean():
    network = weights.with_input_ranges(networks.make_example("lenet5").network, 8)
    model = network.architecture.build("float32")
    image = np.ones((1, 20, 20, 1), np.float32)
    variables = network.variables
    for scale, want in ((-2, (-2.0, 0.0)), (3, (-1.8, 0.3)), (3, (-1.62, 0.57))):
        variables = {**variables, "batch_stats": model.apply(variables, scale * image, train=True)[1]}
        np.testing.assert_allclose(variables["batch_stats"]["conv1"]["input_range"], want, rtol=1e-6)
    before = variables["batch_stats"]
    assert model.apply(variables, image, train=False)[1] is before


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.0, 5.0), (-0.7, 0.0)])
def test_steps_are_even_and_zero_is_one(bits, low, high):
    x = jnp.linspace(2 * low - 1, 2 * high + 1, 4001)
    rounded = np.asarray(variants.round_to_steps(x, jnp.float32(low), jnp.float32(high), bits))
    values = np.unique(rounded)
    step = (high - low) / (2**bits - 1)
    assert 0 in values and len(values) == 2**bits
    np.testing.assert_allclose(np.diff(values), step, rtol=1e-4)
    inside = (np.asarray(x) > low + step) & (np.asarray(x) < high - step)
    assert np.abs(rounded - x)[inside].max() <= step / 2 * 1.0001
    gradient = np.asarray(jax.grad(lambda x: variants.round_to_steps(x, low, high, bits).sum())(x))
    assert (gradient[inside] == 1).all() and (gradient[[0, -1]] == 0).all()


def test_a_layer_that_is_not_there_is_named():
    config = dataclasses.replace(LENET, ranks=("fc9=3",))
    with pytest.raises(ConfigError, match=r"ranks: 'fc9' is no layer of this network; expected one of .*fc1"):
        jax.eval_shape(build(config, 10, "float32").init, jax.random.key(0), IMAGE)
    config = ModelConfig("efficientnet_lite0", ranks=("unit02/depthwise=3x3",))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(ConfigError, match="'unit02/depthwise' is a depthwise convolution"):
        jax.eval_shape(build(config, 10, "float32").init, jax.random.key(0), image)


@pytest.mark.parametrize("rule", ["fc1=3x4", "conv2=4", "fc1=0", "fc1=201", "conv2=21x4"])
def test_as_many_ranks_as_a_layer_has(rule):
    config = dataclasses.replace(LENET, ranks=(rule,))
    with pytest.raises(ConfigError, match=r"ranks: '(fc1|conv2)' (takes one rank|takes two ranks|has no more than)"):
        jax.eval_shape(build(config, 10, "float32").init, jax.random.key(0), IMAGE)


def test_ranks_train_from_scratch_too():
    config = dataclasses.replace(LENET, ranks=("fc1=3", "conv2=4x5"))
    shapes = jax.eval_shape(build(config, 10, "float32").init, jax.random.key(0), IMAGE)["params"]
    assert shapes["fc1"]["first"]["kernel"].shape == (200, 3) and shapes["fc1"]["last"]["kernel"].shape == (3, 500)
    assert [shapes["conv2"][name]["kernel"].shape for name in variants.FACTORS] == [
        (1, 1, 20, 4), (5, 5, 4, 5), (1, 1, 5, 50),
    ]  # fmt: skip
    assert variants.parse_ranks(variants.format_ranks({"a/b": (3,), "c": (4, 5)})) == {"a/b": (3,), "c": (4, 5)}


def test_widths_must_be_as_many_as_there_are():
    with pytest.raises(ConfigError, match=r"features=\(3, 4\): this lenet5 has 3 widths: \(20, 50, 500\)"):
        build(ModelConfig("lenet5", features=(3, 4)), 10, "float32")

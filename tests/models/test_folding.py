"""Checks that folded networks compute what the plain ones do, without the work that does not depend on the input."""

import functools
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiers import cases

from big_distill.config import ModelConfig
from big_distill.models import build, cast, efficientnet_lite, fold, from_linen, mobilenet_v3, vit
from big_distill.models.inverted_residual import Unit

K = 5
SHAPE = (3, 20, 13, 3)
NETWORKS = {
    "bit": ModelConfig("bit", blocks=(1, 1), width=0.25, root_pool="zero"),
    "lite": ModelConfig("efficientnet_lite2"),
    "lite_symmetric": ModelConfig("efficientnet_lite2", padding="symmetric"),
    "mobile": ModelConfig("mobilenet_v3_large"),
    "mobile_group": ModelConfig("mobilenet_v3_large", norm="group"),
    "vit": ModelConfig("vit_base", patch_size=1),
    "cnn": ModelConfig("cnn", features=(4, 6)),
    "own": ModelConfig("own_models:net"),
}
OFTEN = [name for name in NETWORKS if name in ("bit", "cnn", "own")]
each_network = pytest.mark.parametrize("name", cases(*OFTEN, full=[name for name in NETWORKS if name not in OFTEN]))


class Own(nn.Module):
    """Computes a user's network with a BatchNorm that no convolution precedes."""

    @nn.compact
    def __call__(self, image, *, train):
        x = nn.BatchNorm(use_running_average=not train)(image)
        return nn.Dense(K)(x.mean((1, 2)))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Makes networks have few and narrow blocks."""
    units = Unit(32, 8, 3, 1, "relu6"), Unit(48, 8, 3, 2, "relu6")
    monkeypatch.setattr(efficientnet_lite, "units", lambda *_: units)
    units_with_se = Unit(16, 16, 3, 1, "relu"), Unit(64, 24, 3, 2, "hard_swish", 8)
    monkeypatch.setattr(mobilenet_v3, "units", lambda *_: units_with_se)
    monkeypatch.setattr(vit, "SIZES", {"vit_base": (12, 1, 3)})
    own = types.ModuleType("own_models")
    own.net = lambda config, num_classes, dtype: from_linen(Own())
    monkeypatch.setitem(sys.modules, "own_models", own)


def networks(config, dtype="float32"):
    """Builds (plain, folded)."""
    return [build.__wrapped__(config, K, dtype, folded=folded) for folded in (False, True)]


def shapes(model):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(SHAPE, jnp.float32))


def random_variables(model):
    """Draws kernels with a mean, and statistics far from 0 and 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if "var" in jax.tree_util.keystr(path):
            return rng.uniform(1e-3, 3, leaf.shape).astype("f")
        fan_in = int(np.prod(leaf.shape[:-1]))
        return (1.5 * rng.normal(0.1, size=leaf.shape) / np.sqrt(fan_in)).astype("f")

    return jax.tree.map_with_path(draw, shapes(model))


def logits_of(model, variables):
    image = np.random.default_rng(1).normal(size=SHAPE).astype("f")
    return jax.jit(functools.partial(model.apply, train=False))(variables, image)[0].logits


@each_network
def test_logits_are_the_plain_networks(name):
    config = NETWORKS[name]
    plain, folded = networks(config)
    variables = random_variables(plain)
    folded_variables = fold(config, variables)
    want, got = logits_of(plain, variables), logits_of(folded, folded_variables)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * want.std(0).mean())
    assert jax.tree.map(jnp.shape, folded_variables) == jax.tree.map(jnp.shape, shapes(folded))
    assert ("batch_stats" in folded_variables) == (":" in config.name)


def rsqrts(model, variables):
    """Lists the shapes of which the program takes reciprocal square roots."""
    image = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    jaxpr = jax.make_jaxpr(functools.partial(model.apply, train=False))(variables, image)
    return sorted(eqn.outvars[0].aval.shape for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "rsqrt")


def test_folded_bit_standardises_no_kernel():
    config = NETWORKS["bit"]
    plain, folded = networks(config)
    group_norms = 2 * 3 + 1
    kernels = 1 + 2 * 4
    assert len(rsqrts(plain, shapes(plain))) == group_norms + kernels
    left = rsqrts(folded, shapes(folded))
    assert len(left) == group_norms and {len(shape) for shape in left} == {4}, "only GroupNorm's, [B, 1, 1, C]"


@pytest.mark.parametrize("name", ["lite", "mobile"])
def test_folded_batch_norm_is_a_bias(name):
    plain, folded = networks(NETWORKS[name])
    assert rsqrts(plain, shapes(plain)) and not rsqrts(folded, shapes(folded))
    assert set(shapes(folded)["params"]["stem"]) == {"kernel", "bias"}


@pytest.mark.parametrize("name", ["bit", "lite"])
def test_bfloat16_is_for_kernels_alone(name):
    config = NETWORKS[name]
    plain, folded = networks(config, "bfloat16")
    variables = random_variables(plain)
    halved = cast(fold(config, variables), "bfloat16")
    assert {(leaf.ndim > 1, leaf.dtype.name) for leaf in jax.tree.leaves(halved)} == {
        (True, "bfloat16"),
        (False, "float32"),
    }
    want, got = logits_of(plain, variables), logits_of(folded, halved)
    assert np.abs(got - want).mean() < 0.05 * want.std()


def test_fold_leaves_its_argument_alone():
    config = NETWORKS["lite"]
    plain, _ = networks(config)
    variables = random_variables(plain)
    before = jax.tree.map(np.copy, variables)
    fold(config, variables)
    jax.tree.map(np.testing.assert_array_equal, before, variables)

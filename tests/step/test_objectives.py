"""Checks losses and their gradients against NumPy in float64, written from the formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_distill.config import ObjectiveConfig
from big_distill.state import Outputs, Targets
from big_distill.step import objectives

B, K = 5, 7


@pytest.fixture
def logits():
    rng = np.random.default_rng(0)
    return 3 * rng.normal(size=(B, K)), 3 * rng.normal(size=(B, K)), rng.dirichlet(np.ones(K), size=B)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(config, s, t, y):
    """Computes (loss [B], dloss/ds [B, K]) in float64."""
    temperature, alpha = config.temperature, config.alpha
    p, q = softmax(t / temperature), softmax(s / temperature)
    if config.name == "cross_entropy":
        return -(y * np.log(softmax(s))).sum(-1), softmax(s) - y
    if config.name == "function_matching":
        return temperature**2 * (p * np.log(p / q)).sum(-1), temperature * (q - p)
    if config.name == "logit_regression":
        return ((s - t) ** 2).sum(-1) / 2, s - t
    weight = alpha * (temperature**2 if config.scale_soft_by_t2 else 1)
    soft, hard = -(p * np.log(q)).sum(-1), -(y * np.log(softmax(s))).sum(-1)
    return weight * soft + (1 - alpha) * hard, weight / temperature * (q - p) + (1 - alpha) * (softmax(s) - y)


def losses_of(config):
    """Builds a function of (student_logits, teacher_logits, labels) that gives an objective's losses [B]."""
    objective = objectives.build(config)

    def losses(student, teacher, labels):
        outputs, targets = Outputs(logits=student), Targets(labels=labels, logits=teacher)
        loss, stats, metrics = objective.loss({}, outputs, targets, jax.random.key(0))
        assert stats == metrics == {}
        return loss

    return losses


CONFIGS = [
    ObjectiveConfig(name="cross_entropy"),
    ObjectiveConfig(name="logit_regression"),
    *(ObjectiveConfig(name="function_matching", temperature=t) for t in (0.5, 1.0, 10.0)),
    *(ObjectiveConfig(name="hinton", temperature=t, alpha=a) for t in (1.0, 10.0) for a in (0.0, 0.9, 1.0)),
    ObjectiveConfig(name="hinton", temperature=4.0, alpha=0.3, scale_soft_by_t2=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_loss_and_gradients(config, logits):
    s, t, y = logits
    objective = losses_of(config)
    to_32 = [jnp.asarray(x, jnp.float32) for x in (s, t, y)]
    loss = objective(*to_32)
    grad_s = jax.grad(lambda s: objective(s, *to_32[1:]).sum())(to_32[0])
    want_loss, want_grad = reference(config, s, t, y)
    assert loss.shape == (B,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, want_loss, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(grad_s, want_grad, rtol=2e-5, atol=2e-5)


def test_kl_of_a_network_with_itself_is_exactly_zero(logits):
    s = jnp.asarray(logits[0], jnp.float32)
    for temperature in (0.5, 1.0, 10.0):
        objective = losses_of(ObjectiveConfig(name="function_matching", temperature=temperature))
        np.testing.assert_array_equal(objective(s, s, None), 0)


def test_large_temperature_limit_is_regression_of_centred_logits(logits):
    """T^2 KL tends to 1/(2K) |(s - mean s) - (t - mean t)|^2: Hinton et al. 2015, section 2.1."""
    s, t, _ = logits
    objective = losses_of(ObjectiveConfig(name="function_matching", temperature=300.0))
    with jax.enable_x64(True):
        loss = objective(jnp.asarray(s), jnp.asarray(t), None)
    centred = (s - s.mean(-1, keepdims=True)) - (t - t.mean(-1, keepdims=True))
    np.testing.assert_allclose(loss, (centred**2).sum(-1) / (2 * K), rtol=0.02)


def test_several_teachers(logits):
    a, b, _ = (jnp.asarray(x, jnp.float32) for x in logits)
    np.testing.assert_allclose(objectives.mean_teacher([a, b], "logits"), (a + b) / 2, rtol=1e-6)
    together = objectives.mean_teacher([a, b], "probabilities")
    np.testing.assert_allclose(
        jax.nn.softmax(together), (softmax(np.float64(a)) + softmax(np.float64(b))) / 2, rtol=1e-5
    )
    assert objectives.mean_teacher([a], "probabilities") is a


@pytest.mark.parametrize(
    "config, reads",
    [
        (ObjectiveConfig(name="cross_entropy"), ("labels",)),
        (ObjectiveConfig(name="function_matching"), ("logits",)),
        (ObjectiveConfig(name="logit_regression"), ("logits",)),
        (ObjectiveConfig(name="hinton", alpha=0.9), ("logits", "labels")),
        (ObjectiveConfig(name="hinton", alpha=1.0), ("logits",)),
        (ObjectiveConfig(name=f"{__name__}:margin"), ()),
    ],
    ids=str,
)
def test_what_an_objective_reads(config, reads):
    assert objectives.build(config).reads == set(reads)


def margin(config):
    return lambda s, t, y: config.temperature * jnp.abs(s - t).sum(-1)


def test_own_objective(logits):
    s, t, _ = (jnp.asarray(x, jnp.float32) for x in logits)
    objective = losses_of(ObjectiveConfig(name=f"{__name__}:margin", temperature=2.0))
    np.testing.assert_allclose(objective(s, t, None), 2 * np.abs(s - t).sum(-1), rtol=1e-6)

"""Checks schedules at their corners, and whole updates against the papers' formulas in NumPy float64."""

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_distill.config import OptimizerConfig
from big_distill.errors import ConfigError
from big_distill.planning import chips
from big_distill.step import optim


def test_cosine_with_warmup():
    schedule = optim.make_schedule(OptimizerConfig(schedule="cosine", warmup_steps=10), 110)
    assert [float(schedule(s)) for s in (0, 5, 10)] == [0.0, 0.5, 1.0]
    np.testing.assert_allclose(schedule(60), 0.5, atol=1e-6)
    np.testing.assert_allclose(schedule(85), 0.5 * (1 + np.cos(0.75 * np.pi)), atol=1e-6)
    np.testing.assert_allclose(schedule(110), 0, atol=1e-7)


def test_staircase_with_warmup():
    schedule = optim.make_schedule(OptimizerConfig(schedule="staircase", warmup_steps=4, boundaries=(10, 20)), 30)
    values = [float(schedule(s)) for s in (0, 2, 4, 9, 10, 19, 20, 29)]
    np.testing.assert_allclose(values, [0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def reference(config, params, grads, schedule):
    """Computes parameters after each step, in float64: clip, then Adam or momentum, then decay of the kernel alone."""
    mu = {k: np.zeros_like(v) for k, v in params.items()}
    nu = {k: np.zeros_like(v) for k, v in params.items()}
    for step, gradient in enumerate(grads):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        clip = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for name in params:
            g = gradient[name] * clip
            if config.name == "adam":
                mu[name] = config.b1 * mu[name] + (1 - config.b1) * g
                nu[name] = config.b2 * nu[name] + (1 - config.b2) * g**2
                t = step + 1
                direction = mu[name] / (1 - config.b1**t) / (np.sqrt(nu[name] / (1 - config.b2**t)) + 1e-8)
            else:
                mu[name] = config.momentum * mu[name] + g
                direction = mu[name]
            decay = config.weight_decay * params[name] if name == "kernel" else 0
            if config.decay_scaled_by_lr:
                decay = config.lr * decay
            params[name] = params[name] - schedule[step] * (config.lr * direction + decay)
    return params


@pytest.mark.parametrize("name", ["adam", "sgd"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_updates(name, scaled, clip_norm):
    config = OptimizerConfig(
        name=name, lr=0.1, weight_decay=0.01, decay_scaled_by_lr=scaled, clip_norm=clip_norm, mu_dtype="float32",
        warmup_steps=2,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    start = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    grads = [{k: 5 * rng.normal(size=v.shape) for k, v in start.items()} for _ in range(5)]
    tx = optim.make_optimizer(config, 10)
    params = {"layer": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start)}
    state = tx.init(params)
    for gradient in grads:
        updates, state = tx.update({"layer": jax.tree.map(jnp.float32, gradient)}, state, params)
        params = jax.tree.map(jnp.add, params, updates)
    schedule = [0, 0.5] + [0.5 * (1 + np.cos(np.pi * k / 8)) for k in range(3)]
    want = reference(config, dict(start), grads, schedule)
    for key, value in want.items():
        np.testing.assert_allclose(params["layer"][key], value, rtol=1e-4, atol=1e-5)


def test_first_moment_alone_is_bfloat16():
    state = optim.make_optimizer(OptimizerConfig(), 10).init({"kernel": jnp.zeros((2, 2))})
    (adam,) = (part for part in state if isinstance(part, optax.ScaleByAdamState))
    assert (adam.mu["kernel"].dtype, adam.nu["kernel"].dtype) == (jnp.bfloat16, jnp.float32)


def test_first_moment_moves_in_float32_and_is_rounded_once():
    tx = optim.make_optimizer(OptimizerConfig(clip_norm=0), 10)
    rng = np.random.default_rng(0)
    params, want = {"kernel": jnp.zeros((64, 64))}, np.zeros((64, 64))
    state = tx.init(params)
    for _ in range(3):
        gradient = rng.normal(size=(64, 64)).astype("f")
        want = (0.9 * want + 0.1 * gradient).astype(jnp.bfloat16).astype(float)
        _, state = jax.jit(tx.update)({"kernel": gradient}, state, params)
        (adam,) = (part for part in state if isinstance(part, optax.ScaleByAdamState))
        np.testing.assert_allclose(np.asarray(adam.mu["kernel"], float), want, rtol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
def test_a_tpu_copies_no_moment():
    """XLA copies an array if one fusion overwrites it while another still reads it; no moment is such an array."""
    (device,) = chips.open_slice("v5e:1x1").devices
    tx = optim.make_optimizer(OptimizerConfig(), 10)

    def kernels(params):
        return jax.tree.map(lambda w: ((w - w.mean(0)) / jnp.square(w).mean(0)).astype(jnp.bfloat16), params)

    def step(params, state, cotangents):
        (grads,) = jax.vjp(kernels, params)[1](cotangents)
        updates, new = tx.update(grads, state, params)
        finite = jnp.isfinite(optax.tree.norm(grads))
        new = optax.apply_updates(params, updates), new
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, (params, state))

    params = {name: jax.ShapeDtypeStruct((256, 512), jnp.float32) for name in "ab"}
    args = params, jax.eval_shape(tx.init, params), jax.eval_shape(kernels, params)
    place = jax.sharding.SingleDeviceSharding(device)
    args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), args)
    text = jax.jit(step, donate_argnums=(0, 1)).lower(*args).compile().as_text()
    assert "bf16[256,512]" in text and not re.search(r"= bf16\[256,512\]\S* copy\(", text)


def test_mask():
    params = {"conv1": {"kernel": 1, "bias": 2}, "gn": {"scale": 3}}
    assert optim.regex_mask(".*/kernel", params) == {"conv1": {"kernel": True, "bias": False}, "gn": {"scale": False}}
    with pytest.raises(ConfigError, match="matches no parameter"):
        optim.regex_mask("kernel", params)


def test_decay_mask_that_matches_nothing_is_refused_at_once():
    config = dataclasses.replace(OptimizerConfig(), weight_decay=0.1, decay_mask="nothing")
    with pytest.raises(ConfigError, match="decay_mask='nothing'"):
        optim.make_optimizer(config, 10).init({"kernel": jnp.zeros(2)})

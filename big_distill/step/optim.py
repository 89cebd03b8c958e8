"""Builds the optax chain: clip, then Adam or SGD, then decoupled decay, then the schedule."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_distill.config import OptimizerConfig
from big_distill.errors import ConfigError
from big_distill.state import Params, path_name

_EPSILON = 1e-8


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Builds the schedule, which maps a step to a factor in [0, 1] of the peak learning rate.

    The factor rises linearly from 0 over `warmup_steps`. Then it is a cosine to 0 at `total_steps`, constant, or
    divided by ten at each of `boundaries` (`staircase`, and `bit_hyperrule`, whose boundaries are already in the
    resolved config).
    """
    warmup = config.warmup_steps
    decay_steps = total_steps - warmup
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(1.0, decay_steps)
    elif config.schedule == "constant":
        after = optax.constant_schedule(1.0)
    else:
        after = optax.piecewise_constant_schedule(1.0, {step - warmup: 0.1 for step in config.boundaries})
    return optax.join_schedules([optax.linear_schedule(0.0, 1.0, warmup), after], [warmup]) if warmup else after


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Builds the update rule of a resolved config.

    If `decay_scaled_by_lr` is False, an update is -schedule (lr direction + weight_decay w), as in the code of Beyer et
    al. 2022. If it is True, an update is AdamW's -schedule lr (direction + weight_decay w).
    """
    schedule = make_schedule(config, total_steps)
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adam":
        chain.append(_adam(config.b1, config.b2, config.mu_dtype))
    else:
        chain.append(optax.trace(config.momentum))
    decay = []
    if config.weight_decay:
        decay = [
            optax.add_decayed_weights(config.weight_decay, mask=lambda params: regex_mask(config.decay_mask, params))
        ]
    scale = [optax.scale(config.lr)]
    chain += decay + scale if config.decay_scaled_by_lr else scale + decay
    return optax.chain(*chain, optax.scale_by_schedule(schedule), optax.scale(-1.0))


def _adam(b1: float, b2: float, mu_dtype: str) -> optax.GradientTransformation:
    """Builds `optax.scale_by_adam` with a first moment that moves in float32 and is rounded once, to `mu_dtype`.

    The barrier is for TPUs. Without it XLA computes the new moment twice, for the parameters and to be kept. The two
    read the old moment in no order, so that XLA copies all of it before the step begins.
    """
    adam = optax.scale_by_adam(b1, b2, mu_dtype=mu_dtype)

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, optax.tree.cast(state.mu, "float32"), b1, 1)
        mu = jax.tree.map(jax.lax.optimization_barrier, mu)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        unbiased = (optax.tree.bias_correction(moment, decay, count) for moment, decay in ((mu, b1), (nu, b2)))
        updates = jax.tree.map(lambda mu, nu: mu / (jnp.sqrt(nu) + _EPSILON), *unbiased)
        return updates, optax.ScaleByAdamState(count, optax.tree.cast(mu, mu_dtype), nu)

    return optax.GradientTransformation(adam.init, update)


def regex_mask(pattern: str, params: Params) -> Params:
    """Builds a tree like `params`: True where the whole path, such as block1/unit01/conv1/kernel, matches.

    Raises:
      ConfigError: a `pattern` that matches nothing.
    """
    mask = jax.tree_util.tree_map_with_path(lambda path, _: bool(re.fullmatch(pattern, path_name(path))), params)
    if not any(jax.tree.leaves(mask)):
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ConfigError(f"config.optimizer.decay_mask={pattern!r} matches no parameter, e.g. not {names[0]!r}")
    return mask

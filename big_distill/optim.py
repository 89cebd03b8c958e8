"""The optax chain: clip, then Adam or SGD, then decoupled decay, then the schedule."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax

from big_distill.config import OptimizerConfig
from big_distill.errors import ConfigError
from big_distill.state import Params, path_name


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """step -> factor in [0, 1] of the peak learning rate.

    Linear warm-up from 0 over `warmup_steps`, then cosine to 0 at `total_steps`, constant, or a tenth at each of
    `boundaries` (`staircase`, and `bit_hyperrule`, whose boundaries are already in the resolved config).
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
    """The update rule of a resolved config.

    With `decay_scaled_by_lr=False` an update is -schedule (lr direction + weight_decay w), as in the code of Beyer et
    al. 2022; with True it is AdamW's -schedule lr (direction + weight_decay w).
    """
    schedule = make_schedule(config, total_steps)
    chain = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    if config.name == "adam":
        chain.append(_adam(config))
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


def _adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam, whose first moment is kept in `mu_dtype` and moved in float32.

    The barriers are for TPUs: without them XLA reads the old moment for its successor and again for the parameters, in
    no order, and therefore copies it first, in every step.
    """
    adam = optax.scale_by_adam(config.b1, config.b2, mu_dtype="float32")

    def init(params: Params) -> Any:
        state = adam.init(params)
        return state._replace(mu=optax.tree.cast(state.mu, config.mu_dtype))

    def update(updates: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        wide = jax.tree.map(lambda mu: jax.lax.optimization_barrier(mu.astype("float32")), state.mu)
        updates, new = adam.update(updates, state._replace(mu=wide), params)
        return updates, new._replace(mu=optax.tree.cast(new.mu, config.mu_dtype))

    return optax.GradientTransformation(init, update)


def regex_mask(pattern: str, params: Params) -> Params:
    """A tree like `params`: True where the whole path, such as block1/unit01/conv1/kernel, matches.

    Raises:
      ConfigError: `pattern` matches nothing.
    """
    mask = jax.tree_util.tree_map_with_path(lambda path, _: bool(re.fullmatch(pattern, path_name(path))), params)
    if not any(jax.tree.leaves(mask)):
        names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ConfigError(f"config.optimizer.decay_mask={pattern!r} matches no parameter, e.g. not {names[0]!r}")
    return mask

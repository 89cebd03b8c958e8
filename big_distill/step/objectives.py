"""What a student minimises: per-example losses of student logits, teacher logits and targets.

An objective is a function `(student_logits [B, K], teacher_logits [B, K] | None, targets [B, K] | None) -> loss [B]`,
all float32; `build` makes one from the config. Your own is named `module:function` in `config.objective.name`, where
the function takes the `ObjectiveConfig` and returns an objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from big_distill.config import ObjectiveConfig, user_code

Objective = Callable[[jax.Array, jax.Array | None, jax.Array | None], jax.Array]


def build(config: ObjectiveConfig) -> Objective:
    """The objective a config names."""
    if ":" in config.name:
        return user_code.load(config.name, "config.objective.name")(config)
    return _OBJECTIVES[config.name](config)


def cross_entropy(config: ObjectiveConfig) -> Objective:
    """-sum_k y_k log softmax(s)_k, for one-hot or mixed targets y [B, K], smoothed as (1 - eps) y + eps / K.

    Szegedy et al. 2016, "Rethinking the Inception architecture" (arXiv 1512.00567), section 7.
    """

    def loss(student_logits: jax.Array, teacher_logits: jax.Array | None, targets: jax.Array | None) -> jax.Array:
        del teacher_logits
        return optax.softmax_cross_entropy(student_logits, optax.smooth_labels(targets, config.label_smoothing))

    return loss


def function_matching(config: ObjectiveConfig) -> Objective:
    """T^2 KL(softmax(t / T) || softmax(s / T)): Beyer et al. 2022 (arXiv 2106.05237), section 2. Reads no labels."""
    temperature = config.temperature

    def loss(student_logits: jax.Array, teacher_logits: jax.Array | None, targets: jax.Array | None) -> jax.Array:
        del targets
        return temperature**2 * kl_divergence(_given(teacher_logits) / temperature, student_logits / temperature)

    return loss


def hinton(config: ObjectiveConfig) -> Objective:
    """alpha CE(softmax(t / T), softmax(s / T)) + (1 - alpha) CE(y, softmax(s)): Hinton et al. 2015 (arXiv 1503.02531).

    The hard term is at temperature 1. Hinton multiplies the soft term by T^2, "Compressing Neural Nets" does not:
    `scale_soft_by_t2` chooses.
    """
    temperature, alpha = config.temperature, config.alpha
    soft_weight = alpha * (temperature**2 if config.scale_soft_by_t2 else 1.0)

    def loss(student_logits: jax.Array, teacher_logits: jax.Array | None, targets: jax.Array | None) -> jax.Array:
        probabilities = jax.nn.softmax(_given(teacher_logits) / temperature)
        soft = soft_weight * optax.softmax_cross_entropy(student_logits / temperature, probabilities)
        if alpha == 1.0:
            return soft
        return soft + (1 - alpha) * optax.softmax_cross_entropy(student_logits, targets)

    return loss


def logit_regression(config: ObjectiveConfig) -> Objective:
    """1/2 sum_k (s_k - t_k)^2: Ba and Caruana 2014 (arXiv 1312.6184), equation 1. Reads no labels."""
    del config

    def loss(student_logits: jax.Array, teacher_logits: jax.Array | None, targets: jax.Array | None) -> jax.Array:
        del targets
        return 0.5 * jnp.sum(jnp.square(student_logits - _given(teacher_logits)), axis=-1)

    return loss


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """KL(softmax(p) || softmax(q)) in nats, [B]; exactly 0 for equal logits."""
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def mean_teacher(logits: Sequence[jax.Array], mean: str) -> jax.Array:
    """One teacher out of several: logits [B, K] that everything reads as if from one network.

    Args:
      logits: of each teacher, [B, K].
      mean: 'logits' averages them; 'probabilities' averages softmax(t) and returns its logarithm.
    """
    if len(logits) == 1:
        return logits[0]
    stacked = jnp.stack(logits)
    if mean == "logits":
        return jnp.mean(stacked, axis=0)
    return jax.nn.logsumexp(jax.nn.log_softmax(stacked), axis=0) - jnp.log(len(logits))


def _given(teacher_logits: jax.Array | None) -> jax.Array:
    if teacher_logits is None:
        raise ValueError("this objective needs a teacher's logits")
    return teacher_logits


_OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "cross_entropy": cross_entropy,
    "function_matching": function_matching,
    "hinton": hinton,
    "logit_regression": logit_regression,
}

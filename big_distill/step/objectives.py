"""Builds objectives, which are the losses that a student minimises, from their config.

The formulas below are functions of logits and labels. An objective may also read an embedding or feature maps. It may
have variables of its own: a projection that is trained, a queue that moves on. You name your own as `module:function`
in `config.objective.name`. The function takes the `ObjectiveConfig` and returns an `Objective`, or a function
`(student_logits [B, K], teacher_logits [B, K] | None, labels [B, K] | None) -> loss [B]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from big_distill.config import ObjectiveConfig, user_code
from big_distill.errors import ConfigError, nearest
from big_distill.state import OUTPUTS, Outputs, Targets

Losses = Callable[[jax.Array, jax.Array | None, jax.Array | None], jax.Array]
"""Maps (student_logits [B, K], teacher_logits [B, K] | None, labels [B, K] | None) to loss [B], all float32."""


def _no_variables(rng: jax.Array, student: Outputs, targets: Targets) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Objective:
    """Holds a loss, and makes the variables that it needs.

    reads: parts of the `Targets` that it needs: 'labels', 'logits', or names of other `Outputs` of the teachers, which
      are there if some objective reads them.
    loss: `(variables, student, targets, rng) -> (loss [B], stats, metrics)`: the loss of every example, the moved
      `variables['stats']` ({} without any), and scalars for the log by name. A term of the whole batch is added to the
      loss of every example. Under accumulation its batch is a part.
    init: `(rng, student, targets) -> variables`, with outputs and targets of one example to take shapes from. The
      variables are 'params', which are trained, and 'stats', which `loss` moves. Both may be absent.
    """

    reads: frozenset[str]
    loss: Callable[[dict[str, Any], Outputs, Targets, jax.Array], tuple[jax.Array, Any, dict[str, jax.Array]]]
    init: Callable[[jax.Array, Outputs, Targets], dict[str, Any]] = _no_variables

    def __post_init__(self) -> None:
        """Makes a frozenset of the names; raises ConfigError if one of them does not exist."""
        object.__setattr__(self, "reads", frozenset([self.reads] if isinstance(self.reads, str) else self.reads))
        for name in self.reads - {"labels", *OUTPUTS}:
            raise ConfigError(f"config.objective.name: it reads {name!r}{nearest(name, ['labels', *OUTPUTS])}")

    @property
    def has_variables(self) -> bool:
        """Returns True if it makes variables of its own."""
        return self.init is not _no_variables

    @property
    def reads_teacher(self) -> bool:
        """Returns True if it needs a teacher."""
        return bool(self.reads - {"labels"})


def of_losses(losses: Losses, *reads: str) -> Objective:
    """Builds the objective of a function of logits and labels alone."""

    def loss(
        variables: dict[str, Any], student: Outputs, targets: Targets, rng: jax.Array
    ) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
        return losses(student.logits, targets.logits, targets.labels), {}, {}

    return Objective(frozenset(reads), loss)


def build(config: ObjectiveConfig) -> Objective:
    """Builds the objective that a config names. It is not known what a user's function of losses reads."""
    if ":" in config.name:
        own = user_code.load(config.name, "config.objective.name")(config)
        return own if isinstance(own, Objective) else of_losses(own)
    return OBJECTIVES[config.name](config)


def cross_entropy(config: ObjectiveConfig) -> Objective:
    """Builds -sum_k y_k log softmax(s)_k, for one-hot or mixed targets y [B, K], smoothed as (1 - eps) y + eps / K.

    The smoothing is that of Szegedy et al. 2016, "Rethinking the Inception architecture" (arXiv 1512.00567), section 7.
    """

    def losses(student_logits: jax.Array, teacher_logits: Any, labels: Any) -> jax.Array:
        return optax.softmax_cross_entropy(student_logits, optax.smooth_labels(labels, config.label_smoothing))

    return of_losses(losses, "labels")


def function_matching(config: ObjectiveConfig) -> Objective:
    """Builds T^2 KL(softmax(t / T) || softmax(s / T)): Beyer et al. 2022 (arXiv 2106.05237), section 2.

    It reads no labels.
    """
    temperature = config.temperature

    def losses(student_logits: jax.Array, teacher_logits: Any, labels: Any) -> jax.Array:
        return temperature**2 * kl_divergence(teacher_logits / temperature, student_logits / temperature)

    return of_losses(losses, "logits")


def hinton(config: ObjectiveConfig) -> Objective:
    """Builds alpha CE(softmax(t / T), softmax(s / T)) + (1 - alpha) CE(y, softmax(s)).

    The formula is from Hinton et al. 2015 (arXiv 1503.02531). The hard term is at temperature 1. Hinton multiplies the
    soft term by T^2; "Compressing Neural Nets" does not. `scale_soft_by_t2` chooses.
    """
    temperature, alpha = config.temperature, config.alpha
    soft_weight = alpha * (temperature**2 if config.scale_soft_by_t2 else 1.0)

    def losses(student_logits: jax.Array, teacher_logits: Any, labels: Any) -> jax.Array:
        probabilities = jax.nn.softmax(teacher_logits / temperature)
        soft = soft_weight * optax.softmax_cross_entropy(student_logits / temperature, probabilities)
        if alpha == 1.0:
            return soft
        return soft + (1 - alpha) * optax.softmax_cross_entropy(student_logits, labels)

    return of_losses(losses, "logits") if alpha == 1.0 else of_losses(losses, "logits", "labels")


def logit_regression(config: ObjectiveConfig) -> Objective:
    """Builds 1/2 sum_k (s_k - t_k)^2: Ba and Caruana 2014 (arXiv 1312.6184), equation 1. It reads no labels."""
    del config

    def losses(student_logits: jax.Array, teacher_logits: Any, labels: Any) -> jax.Array:
        return 0.5 * jnp.sum(jnp.square(student_logits - teacher_logits), axis=-1)

    return of_losses(losses, "logits")


def kl_divergence(p_logits: jax.Array, q_logits: jax.Array) -> jax.Array:
    """Computes KL(softmax(p) || softmax(q)) in nats, [B]; it is exactly 0 for equal logits."""
    log_p, log_q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def mean_teacher(logits: Sequence[jax.Array], mean: str) -> jax.Array:
    """Averages the logits of teachers; everything reads the result [B, K] as if it were one network's.

    Args:
      logits: logits of each teacher, [B, K].
      mean: 'logits' averages them; 'probabilities' averages softmax(t) and returns its logarithm.
    """
    if len(logits) == 1:
        return logits[0]
    stacked = jnp.stack(logits)
    if mean == "logits":
        return jnp.mean(stacked, axis=0)
    return jax.nn.logsumexp(jax.nn.log_softmax(stacked), axis=0) - jnp.log(len(logits))


OPTIONS: dict[str, Mapping[str, Any]] = {}
"""The names and defaults of the `objective.options` that an objective reads, by its name."""
OBJECTIVES: dict[str, Callable[[ObjectiveConfig], Objective]] = {
    "cross_entropy": cross_entropy,
    "function_matching": function_matching,
    "hinton": hinton,
    "logit_regression": logit_regression,
}

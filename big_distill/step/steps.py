"""The train step and the evaluation step: pure functions of their arguments, to be jitted by the caller.

Several devices add up their parts of a kernel's gradient in the dtype in which it was computed: with bfloat16
activations in bfloat16, on purpose. Eight parts added so, one after the other, are off by 0.41 % of the gradient's
norm, where rounding it once costs 0.17 % (a random R26 of half width on noise, 64 px); that its activations are
bfloat16 changes the same gradient by 57 %, half of the batch by 99 %. In float32 the parts would take twice the
interconnect and 7.2 bytes more of HBM traffic a weight (three bottlenecks compiled for a v5e), 5 % of the traffic of a
Flowers step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from big_distill.errors import ConfigError
from big_distill.state import Aux, Batch, Card, Model, Params, Resident, Teacher, TrainState, materialize
from big_distill.step import scoring
from big_distill.step.objectives import Objective, kl_divergence, mean_teacher
from big_distill.step.views import for_network, make_views, to_unit, view_hash

Metrics = dict[str, jax.Array]
_Step = TypeVar("_Step", bound=Callable[..., Any])
Refresh = Callable[[Params, Aux, jax.Array], Aux]
"""(params, aux, number of updates) -> aux: `compress.Scheme.refresh`."""


def make_train_step(
    model: Model,
    card: Card,
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    num_classes: int,
    seed: int,
    refresh: Refresh | None = None,
    accumulate_steps: int = 1,
    max_skipped_steps: int = 0,
    log_view_hash: bool = False,
) -> Callable[[TrainState, Teacher | None, Batch], tuple[TrainState, Metrics]]:
    """The one train step: supervised without a teacher, distillation with one.

    Args:
      model: the student.
      card: what the student expects of its input.
      objective: the loss.
      tx: the update rule.
      num_classes: K.
      seed: of the network's own randomness (dropout), folded with the step.
      refresh: what becomes of `state.aux` after an update; None: it stays.
      accumulate_steps: parts of the global batch whose gradients are added up before the update; mixup comes before
        the split.
      max_skipped_steps: how many updates that are not finite may be left out.
      log_view_hash: whether the metrics have `view_hash` and `teacher_view_hash`, hashes of what each branch saw.

    Returns:
      `train_step(state, teacher, batch) -> (state, metrics)`. The update is applied only if loss and gradient are
      finite and `batch['step']` is `state.step`: after a step that was not, the state stays as it was, however many
      steps are already on their way. If it may be skipped, nothing but `step`, `skipped` and `aux` moves on. Metrics:
      `loss`, `grad_norm`, `applied` and, with a teacher, `kl` and `agreement` on the training view.
    """

    def loss_fn(params: Any, aux: Aux, batch_stats: Any, view: Any, target: Any, targets: Any, rng: jax.Array) -> Any:
        variables = {"params": materialize(params, aux), "batch_stats": batch_stats}
        outputs, batch_stats = model.apply(variables, for_network(view, card), train=True, rng=rng)
        logits = outputs.logits
        losses = objective(logits, target, targets)
        if losses.shape != logits.shape[:1]:
            raise ConfigError(
                f"the objective returned shape {losses.shape}, expected one loss an example, {logits.shape[:1]}"
            )
        metrics = {"loss": jnp.mean(losses)}
        if target is not None:
            metrics["kl"] = jnp.mean(kl_divergence(target, logits))
            metrics["agreement"] = jnp.mean(jnp.argmax(target, -1) == jnp.argmax(logits, -1), dtype=jnp.float32)
        return metrics["loss"], (metrics, batch_stats)

    def gradients(state: TrainState, batch_stats: Any, views: Any, teacher: Teacher | None, rng: jax.Array) -> Any:
        view, teacher_view, targets = views
        target = teacher_logits(teacher, teacher_view)
        if target is not None:  # the teacher first: else what the student keeps for its gradient waits in memory for it
            view, target = jax.lax.optimization_barrier((view, target))
        grad = jax.grad(loss_fn, has_aux=True)
        grads, (metrics, batch_stats) = grad(state.params, state.aux, batch_stats, view, target, targets, rng)
        return (grads, metrics), batch_stats

    def train_step(state: TrainState, teacher: Teacher | None, batch: Batch) -> tuple[TrainState, Metrics]:
        rng = jax.random.fold_in(jax.random.key(seed), state.step)
        views = make_views(batch, num_classes)
        if accumulate_steps == 1:
            (grads, metrics), batch_stats = gradients(state, state.batch_stats, views, teacher, rng)
        else:
            parts = _split(views, accumulate_steps), jax.random.split(rng, accumulate_steps)

            def of_part(batch_stats: Any, part: Any) -> Any:
                views, rng = part
                return gradients(state, batch_stats, views, teacher, rng)

            def add_part(carry: Any, part: Any) -> Any:
                sums, batch_stats = carry
                new, batch_stats = of_part(batch_stats, part)
                return (jax.tree.map(jnp.add, sums, new), batch_stats), None

            shapes, _ = jax.eval_shape(of_part, state.batch_stats, jax.tree.map(lambda x: x[0], parts))
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            (sums, batch_stats), _ = jax.lax.scan(add_part, (zeros, state.batch_stats), parts)
            grads, metrics = jax.tree.map(lambda x: x / accumulate_steps, sums)

        if log_view_hash:
            metrics["view_hash"], metrics["teacher_view_hash"] = view_hash(views[0]), view_hash(views[1])
        metrics["grad_norm"] = optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        in_order = batch["step"] == state.step
        metrics["applied"] = finite & in_order
        old = state.params, state.batch_stats, state.opt_state
        params, batch_stats, opt_state = _where(finite, (params, batch_stats, opt_state), old)
        advances = in_order & (finite | (state.skipped < max_skipped_steps))
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            aux=refresh(params, state.aux, state.step + 1) if refresh else state.aux,
            batch_stats=batch_stats,
            opt_state=opt_state,
            skipped=state.skipped + ~finite,
        )
        return _where(advances, new_state, state), metrics

    return train_step


def make_train_chunk(
    train_step: Callable[..., tuple[TrainState, Metrics]], from_resident: Callable[[Resident, Batch], Batch]
) -> Callable[..., Any]:
    """Several steps as one program.

    Args:
      train_step: of `make_train_step`.
      from_resident: `(resident, draws) -> batch`, see `views.from_resident`.

    Returns:
      `train_chunk(state, teacher, resident, batches) -> (state, metrics [K])`, with `batches` [K, ...] stacked. After a
      step that was not applied and may not be skipped, the rest of the chunk is not applied either. Of a `Resident`
      split (else None) `batches` hold draws, and the pixels are made here.
    """

    def train_chunk(
        state: TrainState, teacher: Teacher | None, resident: Resident | None, batches: Batch
    ) -> tuple[TrainState, Metrics]:
        def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            return train_step(state, teacher, batch if resident is None else from_resident(resident, batch))

        if len(batches["step"]) > 1:
            return jax.lax.scan(step, state, batches)
        state, metrics = step(state, jax.tree.map(lambda x: x[0], batches))  # no loop: it slows XLA's CPU convolutions
        return state, jax.tree.map(lambda x: x[None], metrics)

    return train_chunk


def make_eval_logits(
    model: Model, card: Card
) -> Callable[[Any, Teacher | None, Batch], tuple[jax.Array, jax.Array | None]]:
    """`eval_logits(variables, teacher, batch) -> (student, teacher)`, logits [B, K] of both on the same view."""

    def eval_logits(variables: Any, teacher: Teacher | None, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        view = to_unit(batch["pixels"])
        outputs, _ = model.apply(variables, for_network(view, card), train=False)
        return outputs.logits, teacher_logits(teacher, view)

    return eval_logits


def make_eval_step(model: Model, card: Card) -> Callable[[Any, Teacher | None, Batch], scoring.Sums]:
    """`eval_step(variables, teacher, batch) -> sums` of one batch, for `scoring.summarize`."""
    eval_logits = make_eval_logits(model, card)

    def eval_step(variables: Any, teacher: Teacher | None, batch: Batch) -> scoring.Sums:
        logits, teachers = eval_logits(variables, teacher, batch)
        return scoring.score(logits, teachers, batch.get("label"), batch["mask"])

    return eval_step


def teacher_logits(teacher: Teacher | None, view: jax.Array) -> jax.Array | None:
    """The (mean) teacher's logits [B, K] on a view, or None without a teacher; no gradient flows back."""
    if teacher is None:
        return None
    logits = []
    for model, variables, card, order in zip(
        teacher.models, teacher.variables, teacher.cards, teacher.orders, strict=True
    ):
        outputs, _ = model.apply(variables, for_network(view, card), train=False)
        own = outputs.logits
        logits.append(own if order is None else own[:, jnp.array(order)])
    return jax.lax.stop_gradient(mean_teacher(logits, teacher.mean))


def at_precision(step: _Step, precision: str) -> _Step:
    """The step with products of float32 in this precision, `config.matmul_precision`, where nothing else is said."""
    if precision == "default":
        return step

    @functools.wraps(step)
    def precise(*args: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return step(*args)

    return cast(_Step, precise)


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _split(views: Any, num_parts: int) -> Any:
    """[B, ...] -> [num_parts, B / num_parts, ...]: row i to part i mod num_parts, so that no row changes its device."""

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, views)

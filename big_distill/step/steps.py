"""Builds the train step and the evaluation step: pure functions of their arguments, which the caller jits.

Several devices add up their parts of a kernel's gradient in the dtype in which it was computed: with bfloat16
activations this is bfloat16, on purpose. Eight parts added so, one after the other, are off by 0.41 % of the gradient's
norm; rounding it once costs 0.17 % (a random R26 of half width on noise, 64 px). The bfloat16 activations change the
same gradient by 57 %; half of the batch changes it by 99 %. In float32 the parts would take twice the interconnect and
7.2 bytes more of HBM traffic a weight (three bottlenecks compiled for a v5e), 5 % of the traffic of a Flowers step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax

from big_distill.errors import ConfigError
from big_distill.state import Aux, Batch, Card, Model, Params, Resident, Targets, Teacher, TrainState, materialize
from big_distill.step import scoring
from big_distill.step.objectives import Objective, kl_divergence, mean_teacher
from big_distill.step.views import for_network, make_views, to_unit, view_hash

Metrics = dict[str, jax.Array]
_Step = TypeVar("_Step", bound=Callable[..., Any])
_METRICS = {"loss", "kl", "agreement", "grad_norm", "applied", "view_hash", "teacher_view_hash"}
_METRICS |= {"learning_rate", "images_per_second"}  # the log's own
Refresh = Callable[[Params, Aux, jax.Array], Aux]
"""Maps (params, aux, number of updates) to aux, as `compress.Scheme.refresh` does."""
TrainStep = Callable[
    [tuple[TrainState, ...], Teacher | None, Batch], tuple[tuple[TrainState, ...], tuple[Metrics, ...]]
]
"""Maps (states, teacher, batch) to (states, metrics), one of each a student."""


@dataclasses.dataclass(frozen=True)
class Student:
    """Holds all of one student that a step does not change.

    model: the network.
    card: the input that the network expects.
    objective: the loss.
    tx: the update rule of the network's parameters.
    objective_tx: the update rule of the objective's own parameters; without it they stay as they are.
    seed: the seed of the network's own randomness (dropout) and of the objective's, folded with the step.
    refresh: the function that makes `state.aux` anew after an update; None: it stays.
    max_skipped_steps: the number of updates that are not finite and may be left out.
    """

    model: Model
    card: Card
    objective: Objective
    tx: optax.GradientTransformation
    objective_tx: optax.GradientTransformation = dataclasses.field(default_factory=optax.set_to_zero)
    seed: int = 0
    refresh: Refresh | None = None
    max_skipped_steps: int = 0


class Statistics(NamedTuple):
    """Holds the running statistics of a student's network and of its objective; {} without any."""

    batch_stats: Any
    objective: Any


def make_train_step(
    students: Sequence[Student], *, num_classes: int, accumulate_steps: int = 1, log_view_hash: bool = False
) -> TrainStep:
    """Builds the one train step: supervised without a teacher, distillation with one, for one student or several.

    Args:
      students: the students, which share the views and targets and nothing else.
      num_classes: K.
      accumulate_steps: parts of the global batch whose gradients are added up before the update; mixup comes before
        the split.
      log_view_hash: True for metrics `view_hash` and `teacher_view_hash`, hashes of what each branch saw.

    Returns:
      `train_step(states, teacher, batch) -> (states, metrics)`. An update is applied only if loss and gradient are
      finite and `batch['step']` is `state.step`. After a step that was not applied, the state stays as it was, however
      many steps are already on their way. If the step may be skipped, `step`, `skipped` and `aux` alone move on. The
      metrics are `loss`, `grad_norm` (of the student's parameters, before clipping), `applied`, those of the objective
      and, with a teacher, `kl` and `agreement` on the training view.
    """
    reads = frozenset().union(*(student.objective.reads for student in students))

    def train_step(
        states: tuple[TrainState, ...], teacher: Teacher | None, batch: Batch
    ) -> tuple[tuple[TrainState, ...], tuple[Metrics, ...]]:
        def gradients_of_part(statistics: Any, part: Any) -> Any:
            (view, teacher_view, labels), rngs = part
            targets = ask(teacher, teacher_view, reads)
            if teacher is not None:  # it runs first, or what a student keeps for its gradient waits in memory
                view, targets = jax.lax.optimization_barrier((view, targets))
            targets = dataclasses.replace(targets, labels=labels)
            each = zip(students, states, statistics, rngs, strict=True)
            results = [gradients(student, state, before, view, targets, rng) for student, state, before, rng in each]
            return tuple(result for result, _ in results), tuple(after for _, after in results)

        rngs = tuple(
            jax.random.fold_in(jax.random.key(student.seed), state.step)
            for student, state in zip(students, states, strict=True)
        )
        views = make_views(batch, num_classes)
        statistics: Any = tuple(Statistics(s.batch_stats, s.objective.get("stats", {})) for s in states)
        if accumulate_steps == 1:
            means, statistics = gradients_of_part(statistics, (views, rngs))
        else:
            means, statistics = _mean_of_parts(gradients_of_part, statistics, views, rngs, accumulate_steps)
        hashes = {}
        if log_view_hash:
            hashes = {"view_hash": view_hash(views[0]), "teacher_view_hash": view_hash(views[1])}
        results = [
            apply_gradients(student, state, grads, {**metrics, **hashes}, after, batch["step"])
            for student, state, (grads, metrics), after in zip(students, states, means, statistics, strict=True)
        ]
        return tuple(state for state, _ in results), tuple(metrics for _, metrics in results)

    return train_step


def ask(teacher: Teacher | None, view: jax.Array, reads: Collection[str]) -> Targets:
    """Asks the teachers about a view [B, S, S, C]; returns targets without labels. No gradient flows back.

    Args:
      teacher: the teachers; None makes empty targets.
      view: pixels in [0, 1].
      reads: the names of the `Outputs` that are read of each network, beside the mean of all logits.
    """
    if teacher is None:
        return Targets()
    outputs = []
    for model, variables, card, order in zip(
        teacher.models, teacher.variables, teacher.cards, teacher.orders, strict=True
    ):
        found, _ = model.apply(variables, for_network(view, card), train=False)
        outputs.append(found if order is None else found.in_order(order))
    parts = set(reads) - {"labels", "logits"}
    if missing := [part for part in sorted(parts) for each in outputs if getattr(each, part) is None]:
        raise ConfigError(f"config.objective.name: it reads {missing[0]!r}, which a teacher does not have")
    logits = [each.logits for each in outputs if each.logits is not None]
    mean = mean_teacher(logits, teacher.mean) if len(logits) == len(outputs) else None
    return jax.lax.stop_gradient(Targets(logits=mean, teachers=tuple(each.only(parts) for each in outputs)))


def gradients(
    student: Student, state: TrainState, statistics: Statistics, view: jax.Array, targets: Targets, rng: jax.Array
) -> tuple[tuple[tuple[Params, Params], Metrics], Statistics]:
    """Computes one student's gradients on a part of a batch; returns ((gradients, metrics), the statistics after it).

    The gradients are a pair: those of the student's parameters, and those of the objective's.
    """
    batch_stats, stats = statistics

    def loss_fn(trained: tuple[Params, Params]) -> Any:
        params, objective_params = trained
        variables = {"params": materialize(params, state.aux), "batch_stats": batch_stats}
        outputs, new_batch_stats = student.model.apply(variables, for_network(view, student.card), train=True, rng=rng)
        objective_variables = {"params": objective_params, "stats": stats}
        returned = student.objective.loss(objective_variables, outputs, targets, jax.random.fold_in(rng, 1))
        losses, new_stats, metrics = _checked(returned, view.shape[:1], stats)
        metrics["loss"] = jnp.mean(losses)
        if targets.logits is not None and outputs.logits is not None:
            metrics["kl"] = jnp.mean(kl_divergence(targets.logits, outputs.logits))
            same = jnp.argmax(targets.logits, -1) == jnp.argmax(outputs.logits, -1)
            metrics["agreement"] = jnp.mean(same, dtype=jnp.float32)
        return metrics["loss"], (metrics, Statistics(new_batch_stats, new_stats))

    trained = state.params, state.objective.get("params", {})
    grads, (metrics, statistics) = jax.grad(loss_fn, has_aux=True)(trained)
    return (grads, metrics), statistics


def _checked(returned: Any, shape: tuple[int, ...], stats: Any) -> tuple[jax.Array, Any, Metrics]:
    """Checks the (loss [B], stats, metrics) that an objective returned; raises ConfigError if they are not that."""
    subject = "config.objective.name: the objective"
    if not isinstance(returned, tuple) or len(returned) != 3 or not isinstance(returned[2], Mapping):
        raise ConfigError(f"{subject} returned {type(returned).__name__}, expected (loss [B], stats, metrics)")
    losses, new_stats, metrics = returned
    if getattr(losses, "shape", None) != shape:
        what = f"shape {losses.shape}" if hasattr(losses, "shape") else type(losses).__name__
        raise ConfigError(f"{subject} returned {what}, expected one loss an example, {shape}")
    before, after = (jax.tree.map(jnp.shape, tree) for tree in (stats, new_stats))
    if before != after:
        raise ConfigError(f"{subject} returned other stats than it was given, expected those of its init")
    for name, value in metrics.items():
        if name in _METRICS or jnp.shape(value):
            raise ConfigError(f"{subject} has a metric {name!r}: expected a scalar of a name that is not taken")
    return losses, new_stats, {name: jnp.asarray(value) for name, value in metrics.items()}


def apply_gradients(
    student: Student,
    state: TrainState,
    grads: tuple[Params, Params],
    metrics: Metrics,
    statistics: Statistics,
    step: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Applies an update if it is finite and in order; returns the student's new state and its metrics.

    `grads` and `statistics` are as `gradients` returns them for the whole batch. `step`, int32 [], is the batch's.
    """
    (student_grads, objective_grads), (batch_stats, stats) = grads, statistics
    metrics = {**metrics, "grad_norm": optax.tree.norm(student_grads)}
    updates, opt_state = student.tx.update(student_grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    objective = state.objective
    if objective:
        finite &= jnp.isfinite(optax.tree.norm(objective_grads))
        updates, objective_opt_state = student.objective_tx.update(
            objective_grads, objective["opt_state"], objective["params"]
        )
        objective_params = optax.apply_updates(objective["params"], updates)
        objective = {"params": objective_params, "stats": stats, "opt_state": objective_opt_state}
    in_order = step == state.step
    metrics["applied"] = finite & in_order
    old = state.params, state.batch_stats, state.opt_state, state.objective
    new = _where(finite, (params, batch_stats, opt_state, objective), old)
    params, batch_stats, opt_state, objective = new
    advances = in_order & (finite | (state.skipped < student.max_skipped_steps))
    new_state = TrainState(
        step=state.step + 1,
        params=params,
        aux=student.refresh(params, state.aux, state.step + 1) if student.refresh else state.aux,
        batch_stats=batch_stats,
        opt_state=opt_state,
        skipped=state.skipped + ~finite,
        objective=objective,
    )
    return _where(advances, new_state, state), metrics


def _mean_of_parts(
    gradients_of_part: Callable[[Any, Any], Any],
    statistics: Any,
    views: Any,
    rngs: tuple[jax.Array, ...],
    num_parts: int,
) -> Any:
    """Calls `gradients_of_part` for every part in turn; returns the means, and the statistics after the last part."""
    parts = _split(views, num_parts), tuple(jax.random.split(rng, num_parts) for rng in rngs)

    def add_part(carry: Any, part: Any) -> Any:
        sums, statistics = carry
        new, statistics = gradients_of_part(statistics, part)
        return (jax.tree.map(jnp.add, sums, new), statistics), None

    shapes, _ = jax.eval_shape(gradients_of_part, statistics, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    (sums, statistics), _ = jax.lax.scan(add_part, (zeros, statistics), parts)
    return jax.tree.map(lambda x: x / num_parts, sums), statistics


def make_train_chunk(train_step: TrainStep, from_resident: Callable[[Resident, Batch], Batch]) -> Callable[..., Any]:
    """Builds one program of several steps.

    Args:
      train_step: the function that `make_train_step` returned.
      from_resident: `(resident, draws) -> batch`, see `cropping.from_resident`.

    Returns:
      `train_chunk(states, teacher, resident, batches) -> (states, metrics [K])`, with `batches` [K, ...] stacked. After
      a step that was not applied and may not be skipped, the rest of the chunk is not applied either. If `resident` is
      not None, `batches` hold draws, and the pixels are made here.
    """

    def train_chunk(states: Any, teacher: Teacher | None, resident: Resident | None, batches: Batch) -> Any:
        def step(states: Any, batch: Batch) -> Any:
            return train_step(states, teacher, batch if resident is None else from_resident(resident, batch))

        if len(batches["step"]) > 1:
            return jax.lax.scan(step, states, batches)
        states, metrics = step(states, jax.tree.map(lambda x: x[0], batches))  # a loop slows XLA's CPU convolutions
        return states, jax.tree.map(lambda x: x[None], metrics)

    return train_chunk


def make_eval_logits(
    model: Model, card: Card
) -> Callable[[Any, Teacher | None, Batch], tuple[jax.Array, jax.Array | None]]:
    """Builds `eval_logits(variables, teacher, batch) -> (student, teacher)`: logits [B, K] of both on the same view."""

    def eval_logits(variables: Any, teacher: Teacher | None, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        view = to_unit(batch["pixels"])
        outputs, _ = model.apply(variables, for_network(view, card), train=False)
        return outputs.logits, teacher_logits(teacher, view)

    return eval_logits


def make_eval_step(
    model: Model, card: Card, confusion: bool = False
) -> Callable[[Any, Teacher | None, Batch], scoring.Sums]:
    """Builds `eval_step(variables, teacher, batch) -> sums`: the sums of one batch, as `scoring.score` makes them."""
    eval_logits = make_eval_logits(model, card)

    def eval_step(variables: Any, teacher: Teacher | None, batch: Batch) -> scoring.Sums:
        logits, teachers = eval_logits(variables, teacher, batch)
        return scoring.score(logits, teachers, batch.get("label"), batch["mask"], confusion)

    return eval_step


def teacher_logits(teacher: Teacher | None, view: jax.Array) -> jax.Array | None:
    """Returns the mean of the teachers' logits [B, K] on a view, or None without a teacher; no gradient flows back."""
    return ask(teacher, view, ()).logits


def at_precision(step: _Step, precision: str) -> _Step:
    """Makes a step compute float32 products in `precision` (`config.matmul_precision`) where it sets no other."""
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
    """Splits [B, ...] into [num_parts, B / num_parts, ...]: row i goes to part i mod num_parts, on its device."""

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:]), 0, 1)

    return jax.tree.map(split, views)

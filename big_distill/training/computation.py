"""Builds the computation of a run: its steps, jitted for a mesh of devices that need not be there."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from big_distill import compress, weights
from big_distill.config import Config
from big_distill.errors import ConfigError
from big_distill.parallel import sharding
from big_distill.state import Teacher, TrainState
from big_distill.step import cropping, objectives, optim, steps, views
from big_distill.step.objectives import Objective
from big_distill.training.evaluation import EvalStep, jit_eval_step

_NO_STEP = np.uint32(2**32 - 1)  # no step has this number; a step's key is folded with the step's number


@dataclasses.dataclass(frozen=True)
class Computation:
    """Holds the functions that a run computes with, jitted for a mesh. Building them needs neither data nor weights.

    architecture: that of the student.
    init: maps a key to the student's variables.
    begin: maps variables to the state of step 0.
    train_chunk: `(states, teacher, resident, batches) -> (states, metrics [K])`, see `steps.make_train_chunk`.
    """

    config: Config
    mesh: Mesh
    architecture: weights.ConfigArchitecture
    scheme: compress.Scheme
    init: Callable[[jax.Array], weights.Variables]
    begin: Callable[[weights.Variables], TrainState]
    train_chunk: Callable[..., Any]
    eval_step: EvalStep

    @property
    def abstract_state(self) -> Any:
        """Returns the shapes, dtypes and shardings of the TrainState."""
        abstract = jax.eval_shape(self.begin, self.architecture.abstract_variables())
        return sharding.place(abstract, sharding.rule(self.mesh, abstract))


def build(
    config: Config, architecture: weights.ConfigArchitecture, mesh: Mesh, teacher: Teacher | None = None
) -> Computation:
    """Builds the steps of a run, for devices that need not be there.

    Args:
      config: the resolved config.
      architecture: that of the student.
      mesh: the mesh of the run.
      teacher: its arrays or their shapes. They give the shapes of an objective's variables. Without them an objective
        that reads a teacher has no variables yet.

    Raises:
      ConfigError: shapes do not fit, or the optimiser does not suit them.
    """
    variables = architecture.abstract_variables()
    scheme = compress.make_scheme(config, variables["params"])
    student = _student(config, architecture, mesh, scheme)
    if ":" in (architecture.model.name or ""):
        _check_logits(config, student, architecture, variables)
    train_step = steps.make_train_step(
        [student],
        num_classes=config.num_classes,
        accumulate_steps=config.accumulate_steps,
        log_view_hash=config.log_view_hash,
    )
    from_resident = functools.partial(cropping.from_resident, size=config.view.image_size)
    train_chunk = steps.make_train_chunk(train_step, sharding.on_own_examples(mesh, from_resident))
    example = None
    if student.objective.has_variables and (teacher or not student.objective.reads_teacher):
        example = _abstract_example(config, student, variables, teacher)

    def init(rng: jax.Array) -> weights.Variables:
        return student.model.init(rng, jnp.zeros(architecture.input_shape, jnp.float32))

    def begin(variables: weights.Variables) -> TrainState:
        params, aux = scheme.encode(variables["params"])
        return TrainState(
            step=jnp.int32(0),
            params=params,
            aux=aux,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=student.tx.init(params),
            skipped=jnp.int32(0),
            objective=_begin_objective(student, example),
        )

    state = jax.eval_shape(begin, variables)  # raises if shapes do not fit, or the optimiser does not suit them
    by_rule = sharding.rule(mesh, state)
    return Computation(
        config=config,
        mesh=mesh,
        architecture=architecture,
        scheme=scheme,
        init=jax.jit(init, out_shardings=sharding.rule(mesh, variables)),
        begin=jax.jit(begin, out_shardings=by_rule),
        train_chunk=jax.jit(
            steps.at_precision(train_chunk, config.matmul_precision),
            donate_argnums=0,
            out_shardings=((by_rule,), sharding.replicated(mesh)),
        ),
        eval_step=jit_eval_step(architecture, config, mesh),
    )


def _student(
    config: Config, architecture: weights.ConfigArchitecture, mesh: Mesh, scheme: compress.Scheme
) -> steps.Student:
    """Builds the student as a step takes it."""
    objective = _gathering(objectives.build(config.objective), mesh)
    without_clip_and_decay = dataclasses.replace(config.optimizer, clip_norm=0.0, weight_decay=0.0)
    return steps.Student(
        model=sharding.gathering(mesh, architecture.build(config.dtype)),
        card=architecture.card,
        objective=objective,
        tx=optim.make_optimizer(config.optimizer, config.total_steps),
        objective_tx=optim.make_optimizer(without_clip_and_decay, config.total_steps),
        seed=config.seed,
        refresh=scheme.refresh if scheme.prunes else None,
        max_skipped_steps=config.optimizer.max_skipped_steps,
    )


def _check_logits(
    config: Config, student: steps.Student, architecture: weights.ConfigArchitecture, variables: Any
) -> None:
    """Raises ConfigError unless a user's own network has as many logits as there are classes."""
    image = jax.ShapeDtypeStruct(architecture.input_shape, jnp.float32)
    outputs, _ = jax.eval_shape(functools.partial(student.model.apply, train=False), variables, image)
    shape, expected = getattr(outputs.logits, "shape", None), (1, config.num_classes)
    if shape != expected:
        name = architecture.model.name
        raise ConfigError(f"config.student.name={name!r} returned logits {shape} for one image, expected {expected}")


def _gathering(objective: Objective, mesh: Mesh) -> Objective:
    """Makes an objective gather its params, which are split over devices as the student's are."""

    def loss(variables: dict[str, Any], *others: Any) -> Any:
        return objective.loss({**variables, "params": sharding.gathered(mesh, variables["params"])}, *others)

    return dataclasses.replace(objective, loss=loss)


def _abstract_example(config: Config, student: steps.Student, variables: Any, teacher: Teacher | None) -> Any:
    """Returns (Outputs, Targets) of one example, as shapes and dtypes."""
    view = jax.ShapeDtypeStruct((1, config.view.image_size, config.view.image_size, config.view.channels), jnp.float32)

    def example(variables: weights.Variables, teacher: Teacher | None, view: jax.Array) -> Any:
        outputs, _ = student.model.apply(variables, views.for_network(view, student.card), train=False)
        targets = steps.ask(teacher, view, student.objective.reads)
        return outputs, dataclasses.replace(targets, labels=labels)

    labels = jnp.zeros((1, config.num_classes)) if "labels" in student.objective.reads else None
    return jax.eval_shape(example, variables, teacher, view)


def _begin_objective(student: steps.Student, example: Any) -> dict[str, Any]:
    """Initialises the variables of an objective and their optimiser's state; {} if it has none."""
    if example is None:
        return {}
    outputs, targets = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
    variables = student.objective.init(jax.random.fold_in(jax.random.key(student.seed), _NO_STEP), outputs, targets)
    params, stats = variables.get("params", {}), variables.get("stats", {})
    if not params and not stats:
        return {}
    return {"params": params, "stats": stats, "opt_state": student.objective_tx.init(params)}

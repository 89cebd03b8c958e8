"""A run before its first step: its data opened, its networks and steps built, its teacher frozen and checked."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from big_distill import compress, weights
from big_distill import teacher as teachers
from big_distill.config import CompressConfig, Config, fingerprint
from big_distill.data.pipeline import EvalPipeline, TrainPipeline, check_source, class_names_of
from big_distill.errors import DataError, RunError
from big_distill.parallel import sharding
from big_distill.resolve import needs_labels
from big_distill.run_dir.checkpoints import Checkpoints, has_checkpoint
from big_distill.state import Resident, Teacher, TrainState
from big_distill.step import objectives, optim, steps, views
from big_distill.teacher import check
from big_distill.training import transition
from big_distill.training.evaluation import EvalStep, evaluate, jit_eval_step, open_eval, open_split

Scores = dict[str, dict[str, float]]
"""split -> metric -> value"""


Identity = dict[str, str]
"""`sha256`, which a resume compares, and the `name` of whose it is."""


@dataclasses.dataclass(frozen=True)
class Computation:
    """What a run computes, jitted for a mesh: it takes neither data nor weights to make."""

    config: Config
    mesh: Mesh
    student: weights.Architecture
    scheme: compress.Scheme
    init: Callable[[jax.Array], weights.Variables]
    begin: Callable[[weights.Variables], TrainState]
    train_chunk: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    eval_step: EvalStep

    @property
    def abstract_state(self) -> Any:
        """The TrainState's shapes and dtypes, and where it lives."""
        abstract = jax.eval_shape(self.begin, self.student.abstract_variables())
        return sharding.place(abstract, sharding.rule(self.mesh, abstract))


@dataclasses.dataclass(frozen=True)
class Run(Computation):
    """What stays the same from the first step to the last."""

    workdir: pathlib.Path
    teacher: check.Checked | None
    initial: weights.Network | None  # what the student starts from
    train_data: TrainPipeline
    eval_data: dict[str, EvalPipeline]
    identity: dict[str, Identity | None]  # of the data and of the teacher, unfolded

    @property
    def frozen(self) -> Teacher | None:
        """The teacher as the steps take it."""
        return self.teacher.teacher if self.teacher else None

    def resident(self) -> Resident | None:
        """The training split on every device, if that is where it is to live.

        Raises:
          DataError: it does not fit.
        """
        split = self.train_data.resident()
        needed = sum(x.nbytes for x in jax.tree.leaves(split))
        memory = jax.local_devices()[0].memory_stats() or {}  # of a CPU there are none
        free = memory.get("bytes_limit", needed) - memory.get("bytes_in_use", 0)
        if needed > max(free, 0):
            raise DataError(
                f"config.source.resident=True, but {self.train_data.name} takes {needed / 1e6:,.1f} MB on every "
                f"device, which has {free / 1e6:,.1f} MB left"
            )
        on_devices = sharding.put(split, sharding.replicated(self.mesh))
        if split is not None:
            self.train_data.forget_pixels()
        return on_devices

    def evaluate(self, state: TrainState, stop: Callable[[], bool] | None = None) -> Scores:
        """Metrics on the validation and the test split, as far as there are any; `stop` as in `evaluation.evaluate`."""
        return {
            split: evaluate(self.eval_step, state.variables, self.frozen, data, self.mesh, stop)
            for split, data in self.eval_data.items()
        }


def open_run(config: Config, workdir: pathlib.Path) -> Run:
    """Opens the data and builds the steps, all but the teacher; decodes and compiles nothing yet."""
    mesh = sharding.make_mesh(config.mesh.fsdp)
    source = open_split(config, config.source, config.source.train)
    if config.eval_source.name and not needs_labels(config.objective):
        source = dataclasses.replace(source, num_classes=None, class_names=())  # another set's labels mean nothing here
    check_source(config, source, needs_labels(config.objective))
    splits = {"validation": config.evaluated_on.validation, "test": config.evaluated_on.test}
    eval_data = {name: open_eval(config, split) for name, split in splits.items() if split}
    initial = None
    if has_checkpoint(workdir):
        student = weights.read_architecture(workdir)
    else:
        class_names = class_names_of(source, list(eval_data.values()))
        initial = transition.initial(config, workdir)
        if initial is not None:
            initial = transition.begin_from(config, initial)
        else:
            config = before_reshaping(config)
        student = weights.architecture_of(config, class_names, initial)
        if initial is not None:
            merge(config, student.abstract_variables(), initial)
    computation = build(config, student, mesh)
    return Run(
        **vars(computation),
        workdir=workdir,
        teacher=None,
        initial=initial,
        train_data=TrainPipeline(config, source, jax.process_index(), jax.process_count()),
        eval_data=eval_data,
        identity={
            "data": {"name": f"{source.name}, {source.num_examples:,} examples", "sha256": source.fingerprint},
            "teacher": None,
        },
    )


def before_reshaping(config: Config) -> Config:
    """The config, without `compress` if which kernels there will be is not known before they are trained."""
    return dataclasses.replace(config, compress=CompressConfig()) if transition.reshapes(config) else config


def build(config: Config, student: weights.Architecture, mesh: Mesh) -> Computation:
    """The steps of a run, for devices that need not be there.

    Raises:
      ConfigError: shapes do not work out, or the optimiser does not suit them.
    """
    variables = student.abstract_variables()
    scheme = compress.make_scheme(config, variables["params"])
    model = sharding.gathering(mesh, student.build(config.dtype))
    tx = optim.make_optimizer(config.optimizer, config.total_steps)
    train_step = steps.make_train_step(
        model,
        student.card,
        objectives.build(config.objective),
        tx,
        num_classes=config.num_classes,
        seed=config.seed,
        refresh=scheme.refresh if scheme.prunes else None,
        accumulate_steps=config.accumulate_steps,
        max_skipped_steps=config.optimizer.max_skipped_steps,
        log_view_hash=config.log_view_hash,
    )
    from_resident = functools.partial(views.from_resident, size=config.view.image_size)
    train_chunk = steps.make_train_chunk(train_step, sharding.on_own_examples(mesh, from_resident))

    def init(rng: jax.Array) -> weights.Variables:
        return model.init(rng, jnp.zeros(student.input_shape, jnp.float32))

    def begin(variables: weights.Variables) -> TrainState:
        params, aux = scheme.encode(variables["params"])
        batch_stats = variables.get("batch_stats", {})
        return TrainState(jnp.int32(0), params, aux, batch_stats, tx.init(params), jnp.int32(0))

    state = jax.eval_shape(begin, variables)  # raises where shapes do not work out, or the optimiser does not suit them
    by_rule = sharding.rule(mesh, state)
    return Computation(
        config=config,
        mesh=mesh,
        student=student,
        scheme=scheme,
        init=jax.jit(init, out_shardings=sharding.rule(mesh, variables)),
        begin=jax.jit(begin, out_shardings=by_rule),
        train_chunk=jax.jit(
            steps.at_precision(train_chunk, config.matmul_precision),
            donate_argnums=0,
            out_shardings=(by_rule, sharding.replicated(mesh)),
        ),
        eval_step=jit_eval_step(student, config, mesh),
    )


def with_teacher(run: Run, checkpoints: Checkpoints) -> Run:
    """The run with its teacher, after a check that it resumes with the teacher and the data that it began with."""
    networks = teachers.read(run.config, run.workdir)
    teacher = {"name": ", ".join(n.source for n in networks), "sha256": teachers.identity(networks)}
    config = {"name": "a checkpoint of another run", "sha256": fingerprint(run.config)}
    identity = {**run.identity, "config": config, "teacher": teacher if networks else None}
    start = checkpoints.latest_step()
    for part, before in (checkpoints.meta(start)["identity"] if start is not None else identity).items():
        if _sha256(before) != _sha256(identity[part]):
            raise RunError(
                f"{run.workdir} was trained with another {part} ({_described(before)}; now "
                f"{_described(identity[part])}): choose another --workdir"
            )
    class_names = run.student.card.class_names or teachers.class_names(networks)
    checked = check.prepare(
        networks,
        run.config,
        run.workdir,
        run.mesh,
        run.train_data,
        next(iter(run.eval_data.values()), None),
        class_names,
    )
    card = dataclasses.replace(run.student.card, class_names=class_names)
    return dataclasses.replace(
        run, identity=identity, teacher=checked, student=dataclasses.replace(run.student, card=card)
    )


def _sha256(identity: Identity | None) -> str | None:
    return identity["sha256"] if identity else None


def _described(identity: Identity | None) -> str:
    return f"{identity['name']}, hash {identity['sha256'][:12]}" if identity else "none"


def merge(config: Config, variables: Any, initial: weights.Network) -> weights.Merge:
    """New variables with those that the run starts from."""
    return weights.merge(variables, initial.variables, config.init_fresh, initial.source)

"""The only loop: trains a student, with or without a teacher, resumes it exactly, evaluates it and sums it up."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from clu import parameter_overview
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from big_distill import compress, objectives, optim, preflight, sharding, steps, transition, weights
from big_distill import teacher as teachers
from big_distill import workdir as workdirs
from big_distill.checkpoints import Checkpoints, Preemption, has_checkpoint
from big_distill.config import CompressConfig, Config, fingerprint
from big_distill.data.pipeline import EvalPipeline, TrainPipeline, check_source, class_names_of
from big_distill.errors import NonFiniteError, Preempted, RunError
from big_distill.evaluation import EvalStep, evaluate, jit_eval_step, open_eval, open_split
from big_distill.metrics import MetricsLog, Progress, Stopwatch, profiler, say
from big_distill.resolve import needs_labels
from big_distill.state import Teacher, TrainState

Scores = dict[str, dict[str, float]]  # split -> metric -> value


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the last."""

    config: Config
    workdir: pathlib.Path
    mesh: Mesh
    teacher: preflight.Checked | None
    student: weights.Architecture
    initial: weights.Network | None  # what the student starts from
    plan: compress.Plan
    train_data: TrainPipeline
    eval_data: dict[str, EvalPipeline]
    init: Callable[[jax.Array], weights.Variables]
    begin: Callable[[weights.Variables], TrainState]
    train_step: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    eval_step: EvalStep
    identity: dict[str, str | None]  # hashes of the data and of the teacher, unfolded

    @property
    def frozen(self) -> Teacher | None:
        """The teacher as the steps take it."""
        return self.teacher.teacher if self.teacher else None

    def evaluate(self, state: TrainState) -> Scores:
        """Metrics on the validation and the test split, as far as there are any."""
        return {
            split: evaluate(self.eval_step, state.variables, self.frozen, data, self.mesh)
            for split, data in self.eval_data.items()
        }


@dataclasses.dataclass
class _Clock:
    """Time over all sessions of a run, as its checkpoints know it.

    Evaluation, saving and the first step of a session do not count as training.
    """

    wall_seconds: float = 0.0
    train_seconds: float = 0.0
    timed_steps: int = 0


@dataclasses.dataclass
class _Position:
    """Where a session of a run begins.

    evaluated: False after a signal that left no time for the evaluation that was due at this step.
    """

    state: TrainState
    step: int = 0
    clock: _Clock = dataclasses.field(default_factory=_Clock)
    evaluated: bool = True


def train_and_evaluate(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains a run to its end, from its start or from its newest checkpoint; a finished run is only read.

    Args:
      config: resolved.
      workdir: the run directory; made if need be.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      RunError: the directory holds a run with another config, data or teacher.
      DataError: the data are not what the config says.
      NonFiniteError: a loss or gradient stopped being finite.
      Preempted: a signal arrived; everything is saved and the same call goes on.
    """
    with Preemption() as preemption:
        return _run(config, workdir, preemption)


def _run(config: Config, workdir: pathlib.Path, preemption: Preemption, prefix: str = "config") -> dict[str, Any]:
    """`train_and_evaluate`, and its own call for the teacher that a config trains first."""
    workdirs.claim(workdir, config, prefix)
    if summary := workdirs.read_summary(workdir):
        say(f"{workdir}: finished already")
        return summary
    run = _open(config, workdir)  # before anything is trained: what is wrong with the student shows now
    begun = has_checkpoint(workdir)
    for inner, directory, name, what in (
        (config.teacher.config, workdirs.TEACHER_DIR, "teacher.config", "teacher"),
        (None if begun else config.init_config, workdirs.INIT_DIR, "init_config", "first stage"),
    ):
        if inner is not None:
            _run(inner, workdir / directory, preemption, f"{prefix}.{name}")
            if preemption.requested:
                raise Preempted(f"stopped after the {what}, before what follows; the same command goes on")
    if config.begins_from is not None and not begun and run.initial is None:
        run = _open(config, workdir)  # now from the network that was trained just now
    with contextlib.closing(Checkpoints.of(config, workdir)) as checkpoints:
        run = _with_teacher(run, checkpoints)
        begin = _start(run, checkpoints)
        state, scores = _train(run, checkpoints, begin, preemption, _name(prefix))
        best_step = checkpoints.best_step()
    return _finish(run, state, scores, begin.clock, best_step)


def _name(prefix: str) -> str:
    """What a run is called in the log: student, teacher, or whose first stage it is."""
    whose = "teacher" if "teacher.config" in prefix else "student"
    return f"{whose}'s init" if prefix.endswith("init_config") else whose


def _open(config: Config, workdir: pathlib.Path) -> _Run:
    """Opens the data and builds the steps, all but the teacher; decodes and compiles nothing yet."""
    mesh = sharding.make_mesh()
    source = open_split(config, config.source, config.source.train)
    if config.eval_source.name and not needs_labels(config.objective):
        source = dataclasses.replace(source, num_classes=None, class_names=())  # another set's labels mean nothing here
    check_source(config, source)
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
        elif transition.reshapes(config):  # which kernels there will be is not known before that is trained
            config = dataclasses.replace(config, compress=CompressConfig())
        student = weights.architecture_of(config, class_names, initial)
        if initial is not None:
            _merge(config, student.abstract_variables(), initial)
    variables = student.abstract_variables()
    plan = compress.plan(config, variables["params"])
    model = student.build(config.dtype)
    tx = optim.make_optimizer(config.optimizer, config.total_steps)
    train_step = steps.make_train_step(
        model,
        student.card,
        objectives.build(config.objective),
        tx,
        num_classes=config.num_classes,
        seed=config.seed,
        refresh=plan.refresh if plan.prunes else None,
        accumulate_steps=config.accumulate_steps,
        log_view_hash=config.log_view_hash,
    )

    def init(rng: jax.Array) -> weights.Variables:
        return model.init(rng, jnp.zeros(student.input_shape, jnp.float32))

    def begin(variables: weights.Variables) -> TrainState:
        params, aux = plan.encode(variables["params"])
        return TrainState(jnp.int32(0), params, aux, variables.get("batch_stats", {}), tx.init(params))

    jax.eval_shape(begin, variables)  # raises where shapes do not work out, or the optimiser does not suit them
    everywhere = sharding.replicated(mesh)
    return _Run(
        config=config,
        workdir=workdir,
        mesh=mesh,
        teacher=None,
        student=student,
        initial=initial,
        plan=plan,
        train_data=TrainPipeline(config, source, jax.process_index(), jax.process_count()),
        eval_data=eval_data,
        init=jax.jit(init, out_shardings=everywhere),
        begin=jax.jit(begin, out_shardings=everywhere),
        train_step=jax.jit(train_step, donate_argnums=0, out_shardings=everywhere),
        eval_step=jit_eval_step(student, config, mesh),
        identity={"data": source.fingerprint, "teacher": None},
    )


def _with_teacher(run: _Run, checkpoints: Checkpoints) -> _Run:
    """The run with its teacher, after a check that it resumes with the teacher and the data that it began with."""
    networks = teachers.read(run.config, run.workdir)
    identity = {**run.identity, "teacher": teachers.identity(networks) if networks else None}
    start = checkpoints.latest_step()
    for part, before in (checkpoints.meta(start)["identity"] if start is not None else identity).items():
        if before != identity[part]:
            hashes = f"hash {str(before)[:12]}, now {str(identity[part])[:12]}"
            raise RunError(f"{run.workdir} was trained with another {part} ({hashes}): choose another --workdir")
    class_names = run.student.card.class_names or teachers.class_names(networks)
    teacher = preflight.prepare(
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
        run, identity=identity, teacher=teacher, student=dataclasses.replace(run.student, card=card)
    )


def _start(run: _Run, checkpoints: Checkpoints) -> _Position:
    """The newest checkpoint, or a new state."""
    variables = run.student.abstract_variables()
    overview = parameter_overview.get_parameter_overview(variables["params"], include_stats=False)
    logging.info("Parameters of the student:\n%s", overview)
    if jax.process_index() == 0:
        (run.workdir / workdirs.PARAMETERS_FILE).write_text(overview + "\n")
        weights.write_architecture(run.workdir, run.student)
        workdirs.write_config(run.workdir, run.config)
    start = checkpoints.latest_step()
    if start is None:
        variables = run.init(jax.random.key(run.config.seed))
        if run.initial is not None:
            merge = _merge(run.config, variables, run.initial)
            say(f"{run.initial.source}: {merge}")
            variables = sharding.replicate(run.mesh, merge.variables)
        return _Position(run.begin(variables))
    meta = checkpoints.meta(start)
    say(f"{run.workdir}: resumes at step {start:,} of {run.config.total_steps:,}")
    machine = _machine()
    if changed := [
        f"{key}: {meta['machine'][key]} -> {machine[key]}" for key in machine if meta["machine"][key] != machine[key]
    ]:
        say(f"{run.workdir}: goes on on another machine, so not bit-exactly ({'; '.join(changed)})")
    workdirs.note_resume(run.workdir, start)
    state = checkpoints.restore(start, sharding.place(run.mesh, jax.eval_shape(run.begin, variables)))
    return _Position(state, start, _Clock(**meta["clock"]), meta["evaluated"])


def _machine() -> dict[str, Any]:
    """What of a machine may change rounding."""
    return {
        "platform": jax.default_backend(),
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
    }


def _merge(config: Config, variables: Any, initial: weights.Network) -> weights.Merge:
    return weights.merge(variables, initial.variables, config.init_fresh, initial.source)


def _train(
    run: _Run, checkpoints: Checkpoints, begin: _Position, preemption: Preemption, name: str
) -> tuple[TrainState, Scores]:
    """The loop: the state after the last step and its scores; the clock goes on."""
    config, total_steps = run.config, run.config.total_steps
    state, start, clock = begin.state, begin.step, begin.clock
    began = time.monotonic() - clock.wall_seconds
    stopwatch = Stopwatch(clock.train_seconds)
    schedule = optim.make_schedule(config.optimizer, total_steps)
    log = MetricsLog(run.workdir, start, begin.evaluated)
    progress = Progress(name, start, total_steps, log.tensorboard)
    profile = profiler(run.workdir, config.profile_at_step)
    scores: Scores = {}

    def evaluate_at(step: int) -> Scores:
        scores = run.evaluate(state)
        log.write(step, {f"eval/{s}/{key}": v for s, values in scores.items() for key, v in values.items()})
        say(f"{name}: step {step:,} of {total_steps:,}: {_headline(scores)}")
        return scores

    with contextlib.closing(log), contextlib.closing(progress):
        if not begin.evaluated:
            evaluate_at(start)
        for step, batch in enumerate(run.train_data.batches(start), start + 1):
            last = step == total_steps
            state, metrics = run.train_step(state, run.frozen, sharding.to_devices(run.mesh, batch))
            if step == start + 1:
                jax.block_until_ready(metrics)  # compiled: from here on, time is training time
                stopwatch.start()
            else:
                clock.timed_steps += 1
            profile(step)
            progress.update(step)
            stop = preemption.reached(step) and not last
            to_log = last or step % config.log_every_steps == 0
            due = step % config.eval_every_steps == 0
            to_evaluate = last or (due and not stop)
            to_save = last or stop or step % config.checkpoint_every_steps == 0
            # Do not change this order: what is saved has been applied, and all that was measured before is on disk.
            if to_log or to_evaluate or to_save:
                _check_applied(run, state, metrics)
            if to_log:
                rate = config.optimizer.lr * schedule(step - 1)
                values = {f"train/{key}": value for key, value in metrics.items() if key != "applied"}
                speed = config.batch_size * stopwatch.rate(clock.timed_steps)
                log.write(step, {**values, "train/learning_rate": rate, "train/images_per_second": speed})
                progress.show(metrics["loss"])
            with stopwatch.paused():
                if to_evaluate:
                    scores = evaluate_at(step)
                if to_save:
                    log.flush()
                    clock.wall_seconds, clock.train_seconds = time.monotonic() - began, stopwatch.seconds
                    meta = {
                        "identity": run.identity,
                        "machine": _machine(),
                        "clock": dataclasses.asdict(clock),
                        "evaluated": to_evaluate or not due,
                    }
                    comparable = to_evaluate and step >= run.plan.done_at
                    checkpoints.save(step, state, meta, scores.get("validation") if comparable else None)
            if stop:
                raise Preempted(f"saved and stopped at step {step:,} of {total_steps:,}; the same command goes on")
    return state, scores or run.evaluate(state)


def _check_applied(run: _Run, state: TrainState, metrics: Mapping[str, Any]) -> None:
    """Raises NonFiniteError if a step since the last check was not applied; the state is that of the step before."""
    if bool(metrics["applied"]):
        return
    done = int(state.step)
    names = run.train_data.example_names(done)
    path = run.workdir / f"nonfinite_step_{done + 1}.json"
    if jax.process_index() == 0:
        workdirs.write_json(path, {"step": done + 1, "examples": names})
    raise NonFiniteError(
        f"the loss or gradient of step {done + 1:,} is not finite; nothing was updated. Its examples are "
        f"{', '.join(names[:3])}, ... (all in {path}). A lower config.optimizer.lr or a longer warm-up often helps"
    )


def _headline(scores: Scores) -> str:
    parts = []
    for split, values in scores.items():
        shown = [f"{key} {100 * values[key]:.2f} %" for key in ("accuracy", "agreement") if key in values]
        parts.append(f"{split} {' '.join(shown)}")
    return ", ".join(parts)


def _finish(run: _Run, state: TrainState, scores: Scores, clock: _Clock, best_step: int | None) -> dict[str, Any]:
    """Writes the student's weights, then the summary that marks the run as finished."""
    config, test = run.config, scores.get("test", {})
    teacher = None
    if run.teacher is not None:
        if weights.sha256(run.teacher.teacher.variables) != run.teacher.sha256:
            raise RunError("the teacher's weights changed during the run: its results cannot be trusted")
        teacher = {"accuracy": test.get("teacher_accuracy"), "num_params": run.teacher.num_params}
    variables = state.variables
    images = clock.timed_steps * config.batch_size
    bad_images = set(run.train_data.bad).union(*(data.bad for data in run.eval_data.values()))
    summary = {
        "student": {
            "accuracy": test.get("accuracy"),
            "num_params": weights.num_params(variables["params"]),
            "num_nonzero": weights.num_nonzero(variables["params"]),
        },
        "teacher": teacher,
        "agreement": test.get("agreement"),
        "kl": test.get("kl"),
        "steps": int(state.step),
        "best_step": best_step,
        "resumed_at": workdirs.resumed_at(run.workdir),
        "images_per_second": round(images / clock.train_seconds, 1) if clock.train_seconds else None,
        "wall_seconds": round(clock.wall_seconds, 1),
        "bad_images": len(bad_images),
        "params_sha256": weights.sha256(variables["params"]),
        "config_fingerprint": fingerprint(config),
        "scores": scores,
    }
    if jax.process_index() == 0:
        weights.save(run.workdir / weights.WEIGHTS_FILE, weights.Network(run.student, variables))
        workdirs.write_json(run.workdir / workdirs.SUMMARY_FILE, summary)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"finished {run.workdir}")
    return summary

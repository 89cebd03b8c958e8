"""The only loop: trains a student, with or without a teacher, resumes it exactly, evaluates it and sums it up."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from typing import Any

import jax
from absl import logging
from clu import parameter_overview
from jax.experimental import multihost_utils

from big_distill import weights
from big_distill.config import Config, fingerprint
from big_distill.errors import DISK_ERRORS, NonFiniteError, PeerLost, Preempted, RunError
from big_distill.files import atomic
from big_distill.parallel import processes, sharding
from big_distill.run_dir import layout
from big_distill.run_dir.checkpoints import Checkpoints, has_checkpoint, set_aside_damaged
from big_distill.run_dir.environment import environment
from big_distill.run_dir.metrics import MetricsLog, Progress, Stopwatch, last_logged, profiler, read_metrics
from big_distill.state import TrainState
from big_distill.step import optim
from big_distill.terminal import say
from big_distill.training.evaluation import Stopped
from big_distill.training.preemption import Preemption
from big_distill.training.setup import Run, Scores, merge, open_run, with_teacher


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
      ConfigError: another process was given another config.
      RunError: the directory holds a run with another config, data or teacher.
      DataError: the data are not what the config says.
      NonFiniteError: a loss or gradient stopped being finite.
      Preempted: a signal arrived; what there was to save is saved and the same call goes on.
      PeerLost: another process died.
    """
    with Preemption(config.grace_seconds) as preemption:
        try:
            processes.check_same(config)
            return _run(config, workdir, preemption)
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise RunError(f"{error.filename}: {error.strerror}") from error
            if not processes.is_peer_lost(error):
                raise
            raise PeerLost(
                f"another process does not answer ({str(error).partition(chr(10))[0][:200]}); the same commands go on"
            ) from error


def _run(config: Config, workdir: pathlib.Path, preemption: Preemption, prefix: str = "config") -> dict[str, Any]:
    """`train_and_evaluate`, and its own call for the teacher that a config trains first."""
    with layout.claimed(workdir, config, prefix) as summary:
        if summary:
            say(f"{workdir}: finished already")
            return summary
        set_aside_damaged(workdir)
        run = open_run(config, workdir)  # before anything is trained: what is wrong with the student shows now
        begun = has_checkpoint(workdir)
        for inner, directory, name, what in (
            (config.teacher.config, layout.TEACHER_DIR, "teacher.config", "teacher"),
            (None if begun else config.init_config, layout.INIT_DIR, "init_config", "first stage"),
        ):
            if inner is not None:
                _run(inner, workdir / directory, preemption, f"{prefix}.{name}")
                if preemption.requested:
                    raise Preempted(f"stopped after the {what}, before what follows; the same command goes on")
        if config.begins_from is not None and not begun and run.initial is None:
            run = open_run(config, workdir)  # now from the network that was trained just now
        with Checkpoints.of(config, workdir) as checkpoints:
            run = with_teacher(run, checkpoints)
            begin = _start(run, checkpoints)
            with preemption.deferred():
                state, scores = _train(run, checkpoints, begin, preemption, _name(prefix))
            best_step = checkpoints.best_step()
        return _finish(run, state, scores, begin.clock, best_step)


def _name(prefix: str) -> str:
    """What a run is called in the log: student, teacher, or whose first stage it is."""
    whose = "teacher" if "teacher.config" in prefix else "student"
    return f"{whose}'s init" if prefix.endswith("init_config") else whose


def _start(run: Run, checkpoints: Checkpoints) -> _Position:
    """The newest checkpoint, or a new state."""
    variables = run.student.abstract_variables()
    overview = parameter_overview.get_parameter_overview(variables["params"], include_stats=False)
    logging.info("Parameters of the student:\n%s", overview)
    if jax.process_index() == 0:
        atomic.write(run.workdir / layout.PARAMETERS_FILE, f"{overview}\n".encode())
        weights.write_architecture(run.workdir, run.student)
        layout.write_config(run.workdir, run.config)
    start = checkpoints.latest_step()
    layout.note_session(run.workdir, start or 0, environment())
    if start is None:
        if layout.resumed_at(run.workdir) or read_metrics(run.workdir):
            say(f"{run.workdir}: was begun before, but no checkpoint is there: begins at step 0")
        variables = run.init(jax.random.key(run.config.seed))
        if run.initial is not None:
            merged = merge(run.config, variables, run.initial)
            say(f"{run.initial.source}: {merged}")
            variables = sharding.put(merged.variables, sharding.rule(run.mesh, merged.variables))
        return _Position(run.begin(variables))
    meta = checkpoints.meta(start)
    say(f"{run.workdir}: resumes at step {start:,} of {run.config.total_steps:,}")
    machine = _machine(run)
    if changed := [
        f"{key}: {meta['machine'][key]} -> {machine[key]}" for key in machine if meta["machine"][key] != machine[key]
    ]:
        say(f"{run.workdir}: goes on on another machine, so not bit-exactly ({'; '.join(changed)})")
    layout.note_resume(run.workdir, start)
    if jax.process_index() == 0 and (last := last_logged(run.workdir)) < meta["logged"]:
        say(f"{run.workdir}: its metrics end at step {last:,}; those up to step {meta['logged']:,} are lost")
    state = checkpoints.restore(start, run.abstract_state)
    return _Position(state, start, _Clock(**meta["clock"]), meta["evaluated"])


def _machine(run: Run) -> dict[str, Any]:
    """What of a machine may change rounding."""
    return {
        "platform": jax.default_backend(),
        "num_devices": run.mesh.size,
        "num_processes": jax.process_count(),
    }


def _train(
    run: Run, checkpoints: Checkpoints, begin: _Position, preemption: Preemption, name: str
) -> tuple[TrainState, Scores]:
    """The loop: the state after the last step and its scores; the clock goes on."""
    config, total_steps = run.config, run.config.total_steps
    state, start, clock = begin.state, begin.step, begin.clock
    began = time.monotonic() - clock.wall_seconds
    stopwatch = Stopwatch(clock.train_seconds)
    log = MetricsLog(run.workdir, start, begin.evaluated)
    progress = Progress(name, start, total_steps, log.tensorboard)
    profile = profiler(run.workdir, config.profile_at_step)
    scores: Scores = {}
    applied: dict[int, jax.Array] = {}  # of the chunks since the last check, by their first steps
    compiled: set[int] = set()  # for so many steps
    logged = last_logged(run.workdir)

    def evaluate_at(step: int) -> Scores:
        scores = run.evaluate(state, preemption.reached)
        log.write(step, {f"eval/{s}/{key}": v for s, values in scores.items() for key, v in values.items()})
        say(f"{name}: step {step:,} of {total_steps:,}: {_headline(scores)}")
        return scores

    def save(step: int, evaluated: bool) -> None:
        log.flush()
        clock.wall_seconds, clock.train_seconds = time.monotonic() - began, stopwatch.seconds
        meta = {
            "step": step,
            "logged": logged,
            "identity": run.identity,
            "machine": _machine(run),
            "clock": dataclasses.asdict(clock),
            "evaluated": evaluated,
        }
        comparable = evaluated and scores and step >= run.scheme.done_at
        checkpoints.save(step, state, meta, scores.get("validation") if comparable else None)

    def stopped(step: int) -> Preempted:
        return Preempted(f"saved and stopped at step {step:,} of {total_steps:,}; the same command goes on")

    with contextlib.closing(log), contextlib.closing(progress):
        if not begin.evaluated:
            try:
                scores = evaluate_at(start)
            except Stopped:
                raise stopped(start) from None
        resident, step = run.resident(), start
        for chunk in run.train_data.chunks(start):
            num_steps, first = len(chunk["step"]), step + 1
            step += num_steps
            last = step == total_steps
            if num_steps not in compiled:
                jax.block_until_ready(state)
                stopwatch.stop()
            args = run.frozen, resident, sharding.to_devices(run.mesh, chunk, axis=1)
            state, metrics = run.train_chunk(state, *args)
            applied[first] = metrics.pop("applied")
            if num_steps not in compiled:
                jax.block_until_ready(metrics)  # compiled: from here on, time is training time
                compiled.add(num_steps)
                stopwatch.start()
            else:
                clock.timed_steps += num_steps
            profile(step)
            progress.update(step)
            stop = preemption.reached()
            to_log = [s for s in range(first, step + 1) if s == total_steps or s % config.log_every_steps == 0]
            due = last or step % config.eval_every_steps == 0
            to_save = last or stop or step % config.checkpoint_every_steps == 0
            # Do not change this order: what is saved has been applied, and all that was measured before is on disk.
            if to_log:
                reached = int(state.step)  # of a chunk that is broken off, before its end
                done = [s for s in to_log if s <= reached]
                speed = config.batch_size * stopwatch.rate(clock.timed_steps)
                _log_rows(log, config, done, first, jax.device_get(metrics), speed)
                logged = max(done, default=logged)
                progress.show(metrics["loss"][-1])
            if to_log or due or to_save:
                _check_applied(run, state, applied)
            with stopwatch.paused():
                scores = {}
                if due and not stop:
                    try:
                        scores = evaluate_at(step)
                    except Stopped:
                        stop = True
                if to_save or stop:
                    save(step, evaluated=not (due and stop))
            if stop:
                raise stopped(step)
    return state, scores or run.evaluate(state)


def _log_rows(
    log: MetricsLog, config: Config, steps: list[int], first: int, metrics: dict[str, Any], images_per_second: float
) -> None:
    """Writes what was measured in some steps of a chunk, of whose `first` the first of all `metrics` are."""
    schedule = optim.make_schedule(config.optimizer, config.total_steps)
    for step in steps:
        values = {f"train/{key}": value[step - first] for key, value in metrics.items()}
        values["train/learning_rate"] = config.optimizer.lr * schedule(step - 1)
        log.write(step, {**values, "train/images_per_second": images_per_second})


def _check_applied(run: Run, state: TrainState, applied: dict[int, jax.Array]) -> None:
    """Reports the steps since the last check whose update was not applied, and forgets them.

    Raises:
      NonFiniteError: one that may not be skipped; the state is that of the step before.
    """
    most = run.config.optimizer.max_skipped_steps
    flags = jax.device_get(applied).items()
    left_out = [step for first, chunk in flags for step, flag in enumerate(chunk, first) if not flag]
    applied.clear()
    for index, step in enumerate(left_out):
        skipped = step <= int(state.step)
        names = run.train_data.example_names(step - 1)
        path = run.workdir / f"nonfinite_step_{step}.json"
        if jax.process_index() == 0:
            layout.write_json(path, {"step": step, "skipped": skipped, "examples": names})
        message = (
            f"the loss or gradient of step {step:,} is not finite; nothing was updated. Its examples are "
            f"{', '.join(names[:3])}, ... (all in {path})"
        )
        if not skipped:
            limit = f". config.optimizer.max_skipped_steps={most} were skipped before it" if most else ""
            raise NonFiniteError(f"{message}{limit}. A lower config.optimizer.lr or a longer warm-up often helps")
        before = int(state.skipped) - sum(step <= int(state.step) for step in left_out)
        say(f"{message}; skipped, number {before + index + 1} of at most {most}")


def _headline(scores: Scores) -> str:
    parts = []
    for split, values in scores.items():
        shown = [f"{key} {100 * values[key]:.2f} %" for key in ("accuracy", "agreement") if key in values]
        parts.append(f"{split} {' '.join(shown)}")
    return ", ".join(parts)


def _finish(run: Run, state: TrainState, scores: Scores, clock: _Clock, best_step: int | None) -> dict[str, Any]:
    """Writes the student's weights, then the summary that marks the run as finished."""
    config, test = run.config, scores.get("test", {})
    teacher = None
    if run.teacher is not None:
        if weights.sha256(run.teacher.teacher.variables) != run.teacher.sha256:
            raise RunError("the teacher's weights changed during the run: its results cannot be trusted")
        teacher = {"accuracy": test.get("teacher_accuracy"), "num_params": run.teacher.num_params}
    variables = jax.tree.map(sharding.to_host, state.variables)
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
        "skipped_steps": int(state.skipped),
        "best_step": best_step,
        "resumed_at": layout.resumed_at(run.workdir),
        "images_per_second": round(images / clock.train_seconds, 1) if clock.train_seconds else None,
        "wall_seconds": round(clock.wall_seconds, 1),
        "bad_images": len(bad_images),
        "params_sha256": weights.sha256(variables["params"]),
        "config_fingerprint": fingerprint(config),
        "scores": scores,
    }
    if jax.process_index() == 0:
        weights.save(run.workdir / layout.WEIGHTS_FILE, weights.Network(run.student, variables))
        layout.write_json(run.workdir / layout.SUMMARY_FILE, summary)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"finished {run.workdir}")
    return summary

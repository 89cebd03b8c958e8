"""Trains a student in the only loop, with or without a teacher: resumes it exactly, evaluates it and sums it up."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
from absl import logging
from clu import parameter_overview
from jax.experimental import multihost_utils

from big_distill import weights
from big_distill.config import Config
from big_distill.errors import DISK_ERRORS, PeerLost, Preempted, RunError
from big_distill.files import atomic
from big_distill.parallel import processes, sharding
from big_distill.run_dir import layout, lock
from big_distill.run_dir.checkpoints import Checkpoints, read_meta, saved_steps, set_aside_damaged
from big_distill.run_dir.environment import environment
from big_distill.run_dir.metrics import last_logged, read_metrics
from big_distill.state import TrainState
from big_distill.terminal import doing, forget_said, say
from big_distill.training import identity
from big_distill.training.data import open_data, without_duplicates
from big_distill.training.preemption import Preemption
from big_distill.training.session import Clock, Position, Session, hardware
from big_distill.training.setup import Run, Scores, set_up, with_teacher


def train_and_evaluate(config: Config, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains a run to its end, from its start or from its newest checkpoint. Only reads a finished run.

    Args:
      config: the resolved config.
      workdir: the run directory, which is made if need be.

    Returns:
      The summary, as in `summary.json`.

    Raises:
      ConfigError: another process was given another config.
      RunError: the directory holds a run with another config, data or teacher.
      DataError: the data are not what the config says.
      NonFiniteError: a loss or gradient stopped being finite.
      Preempted: a signal arrived. All that there was to save is saved, and the same call goes on.
      PeerLost: another process died.
    """
    with Preemption(config.grace_seconds) as preemption:
        try:
            processes.check_same(config)
            forget_said()
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
    """Trains a config as `train_and_evaluate` does, after its teacher and its first stage."""
    with lock.claimed(workdir, config, prefix) as summary:
        if summary:
            identity.check_moved(config, workdir)
            say(f"{workdir}: finished already")
            return summary
        set_aside_damaged(workdir)
        name = _name(prefix)
        with doing(f"{name}: opens its data"):
            bit_depth = weights.read_architecture(workdir).bit_depth if saved_steps(workdir) else None
            data = without_duplicates(config, workdir, open_data(config, bit_depth))
        run = set_up(config, workdir, data)  # first, so that an error in the student shows before anything is trained
        begun = saved_steps(workdir)
        for inner, directory, field, what in (
            (config.teacher.config, layout.TEACHER_DIR, "teacher.config", "teacher"),
            (None if begun else config.init_config, layout.INIT_DIR, "init_config", "first stage"),
        ):
            if inner is not None:
                _run(inner, workdir / directory, preemption, f"{prefix}.{field}")
                if preemption.requested:
                    raise Preempted(f"stopped after the {what} was trained; the same command goes on")
        if config.begins_from is not None and not begun and run.initial is None:
            run = set_up(config, workdir, data)  # the network that it starts from is trained now
        with Checkpoints(config, workdir) as checkpoints:
            with doing(f"{name}: reads and measures its teacher"):
                run = with_teacher(run)
            with doing(f"{name}: prepares its first step"):
                begin = _start(run, checkpoints)
            with preemption.deferred():
                state, scores = _train(run, checkpoints, begin, preemption, name)
            best_step = checkpoints.best_step()
        return _finish(run, state, scores, begin.clock, best_step)


def _name(prefix: str) -> str:
    """Names a run in the log: 'student', 'teacher', or the same with "'s init" for its first stage."""
    whose = "teacher" if "teacher.config" in prefix else "student"
    return f"{whose}'s init" if prefix.endswith("init_config") else whose


def _start(run: Run, checkpoints: Checkpoints) -> Position:
    """Writes the files that describe the run, then restores its newest checkpoint or makes a new state."""
    variables = run.student.abstract_variables()
    overview = parameter_overview.get_parameter_overview(variables["params"], include_stats=False)
    logging.info("Parameters of the student:\n%s", overview)
    if jax.process_index() == 0:
        atomic.write(run.workdir / layout.PARAMETERS_FILE, f"{overview}\n".encode())
        weights.write_architecture(run.workdir, run.student)
        layout.write_config(run.workdir, run.config, run.fingerprint)
    start = checkpoints.latest_step()
    layout.note_session(run.workdir, start or 0, environment())
    if start is None:
        if layout.resumed_at(run.workdir) or read_metrics(run.workdir):
            say(f"{run.workdir}: was begun before, but no checkpoint is there: begins at step 0")
        variables = run.computation.init(jax.random.key(run.config.seed))
        if run.initial is not None:
            variables, counts = weights.merge(variables, run.initial, run.config.init_fresh)
            say(f"{run.initial.source}: {counts}")
            variables = sharding.put(variables, sharding.rule(run.mesh, variables))
        return Position(run.computation.begin(variables))
    meta = read_meta(run.workdir, start)
    say(f"{run.workdir}: resumes at step {start:,} of {run.config.total_steps:,}")
    here = hardware(run)
    if changed := [
        f"{key}: {meta['machine'][key]} -> {here[key]}" for key in here if meta["machine"][key] != here[key]
    ]:
        say(f"{run.workdir}: goes on on another machine, so not bit-exactly ({'; '.join(changed)})")
    layout.note_resume(run.workdir, start)
    if jax.process_index() == 0 and (last := last_logged(run.workdir)) < meta["logged"]:
        say(f"{run.workdir}: its metrics end at step {last:,}; those up to step {meta['logged']:,} are lost")
    state = checkpoints.restore(start, run.computation.abstract_state)
    return Position(state, start, Clock(**meta["clock"]), meta["evaluated"])


def _train(
    run: Run, checkpoints: Checkpoints, begin: Position, preemption: Preemption, name: str
) -> tuple[TrainState, Scores]:
    """Runs the loop and advances the clock. Returns the state after the last step and its scores."""
    config, total_steps = run.config, run.config.total_steps
    state, step = begin.state, begin.step

    def stopped() -> Preempted:
        return Preempted(f"saved and stopped at step {step:,} of {total_steps:,}; the same command goes on")

    with Session(run, checkpoints, begin, name) as session:
        if not begin.evaluated and not session.evaluate(step, state, preemption.reached):
            raise stopped()
        resident = run.place_resident()
        for chunk in run.train_data.chunks(step):
            steps = range(step + 1, step + 1 + len(chunk["step"]))
            step = steps[-1]
            session.begin_chunk(steps, state)
            args = run.teacher, resident, sharding.to_devices(run.mesh, chunk, axis=1)
            (state,), (metrics,) = run.computation.train_chunk((state,), *args)
            session.end_chunk(steps, metrics)
            stop = preemption.reached()
            to_evaluate = step == total_steps or step % config.eval_every_steps == 0
            to_save = step == total_steps or stop or step % config.checkpoint_every_steps == 0
            # Do not change this order: every saved update was applied, and all metrics before a save are on disk.
            logged = session.log(steps, state, metrics)
            if logged or to_evaluate or to_save:
                session.check_applied(state)
            with session.paused():
                if to_evaluate and not stop:
                    stop = not session.evaluate(step, state, preemption.reached)
                if to_save or stop:
                    session.save(step, state, evaluated=not (to_evaluate and stop))
            if stop:
                raise stopped()
    return state, session.scores or run.evaluate(state)


def _finish(run: Run, state: TrainState, scores: Scores, clock: Clock, best_step: int | None) -> dict[str, Any]:
    """Writes the student's weights, then the summary that marks the run as finished."""
    config, test = run.config, scores.get("test", {})
    teacher = None
    if (checked := run.checked_teacher) is not None:
        if weights.sha256(checked.teacher.variables) != checked.sha256:
            raise RunError("the teacher's weights changed during the run: its results cannot be trusted")
        teacher = {"accuracy": test.get("teacher_accuracy"), "num_params": checked.num_params}
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
        "config_fingerprint": run.fingerprint,
        "scores": scores,
    }
    if jax.process_index() == 0:
        weights.save(run.workdir / layout.WEIGHTS_FILE, weights.Network(run.student, variables))
        layout.write_json(run.workdir / layout.SUMMARY_FILE, summary)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"finished {run.workdir}")
    return summary

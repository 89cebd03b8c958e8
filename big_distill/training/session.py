"""Keeps the log, the clock, the progress bar and the saves of a session while a run trains."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from big_distill.errors import NonFiniteError
from big_distill.run_dir import layout
from big_distill.run_dir.checkpoints import Checkpoints
from big_distill.run_dir.metrics import MetricsLog, Progress, Stopwatch, last_logged, profiler
from big_distill.state import TrainState
from big_distill.step import optim
from big_distill.terminal import say, say_once
from big_distill.training.evaluation import Stopped
from big_distill.training.setup import Run, Scores


@dataclasses.dataclass
class Clock:
    """Holds the time over all sessions of a run, as its checkpoints save it.

    Evaluation, saving and the first step of a session do not count as training.
    """

    wall_seconds: float = 0.0
    train_seconds: float = 0.0
    timed_steps: int = 0


@dataclasses.dataclass
class Position:
    """Says where a session of a run begins.

    evaluated: False after a signal that left no time for the evaluation that was due at this step.
    """

    state: TrainState
    step: int = 0
    clock: Clock = dataclasses.field(default_factory=Clock)
    evaluated: bool = True


class Session:
    """Keeps everything that the loop of one session needs beside the state.

    Attributes:
      scores: the scores of the last step, if it was evaluated.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, begin: Position, name: str):
        config = run.config
        self.scores: Scores = {}
        self._run, self._checkpoints, self._name = run, checkpoints, name
        self._clock, self._began = begin.clock, time.monotonic() - begin.clock.wall_seconds
        self._stopwatch = Stopwatch(begin.clock.train_seconds)
        self._log = MetricsLog(run.workdir, begin.step, begin.evaluated)
        self._profile = profiler(run.workdir, config.profile_at_step)
        self._schedule = optim.make_schedule(config.optimizer, config.total_steps)
        self._logged = last_logged(run.workdir)
        self._compiled: set[int] = set()  # lengths of the chunks that are compiled
        self._applied: dict[int, jax.Array] = {}  # first step -> flags of a chunk, since the last check
        self._progress = Progress(name, begin.step, config.total_steps, self._log.tensorboard)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.closing(self._log), contextlib.closing(self._progress):
            pass

    def begin_chunk(self, steps: range, state: TrainState) -> None:
        """Forgets the earlier scores, and stops the clock if the chunk has to be compiled."""
        self.scores = {}
        if len(steps) not in self._compiled:
            jax.block_until_ready(state)
            self._stopwatch.stop()
            self._progress.note("compiles the step")

    def end_chunk(self, steps: range, metrics: dict[str, Any]) -> None:
        """Counts the steps of a chunk that was dispatched, and moves the bar.

        Raises:
          RunError: the last save has failed since.
        """
        self._checkpoints.check()
        self._applied[steps[0]] = metrics["applied"]
        if len(steps) not in self._compiled:
            jax.block_until_ready(metrics)  # compiled: from here on, time is training time
            self._compiled.add(len(steps))
            self._stopwatch.start()
        else:
            self._clock.timed_steps += len(steps)
        self._profile(steps[-1])
        self._progress.update(steps[-1])

    def log(self, steps: range, state: TrainState, metrics: dict[str, Any]) -> bool:
        """Writes the metrics of a chunk where a line is due. Returns True if one was due."""
        config = self._run.config
        due = [step for step in steps if step == config.total_steps or step % config.log_every_steps == 0]
        if not due:
            return False
        reached = int(state.step)  # before the end of a chunk that was broken off
        speed = config.batch_size * self._stopwatch.rate(self._clock.timed_steps)
        measured = jax.device_get({name: value for name, value in metrics.items() if name != "applied"})
        for step in (step for step in due if step <= reached):
            values = {f"train/{name}": value[step - steps[0]] for name, value in measured.items()}
            values["train/learning_rate"] = config.optimizer.lr * self._schedule(step - 1)
            self._log.write(step, {**values, "train/images_per_second": speed})
            self._logged = step
        self._progress.show(measured["loss"][-1])
        return True

    def check_applied(self, state: TrainState) -> None:
        """Reports the steps since the last check whose update was not applied, and forgets them.

        Raises:
          NonFiniteError: a step may not be skipped. The state is that of the step before.
        """
        most, reached = self._run.config.optimizer.max_skipped_steps, int(state.step)
        flags = jax.device_get(self._applied).items()
        left_out = [step for first, chunk in flags for step, flag in enumerate(chunk, first) if not flag]
        self._applied.clear()
        for index, step in enumerate(left_out):
            skipped = step <= reached
            names = self._run.train_data.example_names(step - 1)
            path = self._run.workdir / f"nonfinite_step_{step}.json"
            if jax.process_index() == 0:
                layout.write_json(path, {"step": step, "skipped": skipped, "examples": names})
            message = (
                f"the loss or gradient of step {step:,} is not finite; nothing was updated. Its examples are "
                f"{', '.join(names[:3])}, ... (all in {path})"
            )
            if not skipped:
                limit = f". config.optimizer.max_skipped_steps={most} were skipped before it" if most else ""
                raise NonFiniteError(f"{message}{limit}. A lower config.optimizer.lr or a longer warm-up often helps")
            before = int(state.skipped) - sum(step <= reached for step in left_out)
            say(f"{message}; skipped, number {before + index + 1} of at most {most}")

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Stops the clock for evaluations and saves, which are not training time."""
        return self._stopwatch.paused()

    def evaluate(self, step: int, state: TrainState, stop: Callable[[], bool]) -> bool:
        """Evaluates the student. Returns True if the evaluation ended before `stop` returned True."""
        self._progress.note("evaluates")
        try:
            self.scores = self._run.evaluate(state, stop)
        except Stopped:
            return False
        config = self._run.config
        values = {f"eval/{split}/{name}": v for split, scores in self.scores.items() for name, v in scores.items()}
        self._log.write(step, values)
        say(f"{self._name}: step {step:,} of {config.total_steps:,}: {_headline(self.scores, config.select_by)}")
        if config.select_by not in ("accuracy", *self.scores.get("validation", {config.select_by})):
            say_once(
                f"config.select_by={config.select_by!r}: the validation split has no such score, so no step is the best"
            )
        self._progress.note("")
        return True

    def save(self, step: int, state: TrainState, *, evaluated: bool) -> None:
        """Saves a step after all earlier metrics are on disk. `evaluated` is that of `Position`."""
        self._progress.note("saves")
        self._log.flush()
        self._clock.wall_seconds = time.monotonic() - self._began
        self._clock.train_seconds = self._stopwatch.seconds
        meta = {
            "step": step,
            "logged": self._logged,
            "identity": self._run.identity,
            "machine": hardware(self._run),
            "clock": dataclasses.asdict(self._clock),
            "evaluated": evaluated,
        }
        comparable = evaluated and self.scores and step >= self._run.computation.scheme.done_at
        self._checkpoints.save(step, state, meta, self.scores.get("validation") if comparable else None)
        self._progress.note("")


def hardware(run: Run) -> dict[str, Any]:
    """Returns the facts about a machine that may change rounding."""
    return {
        "platform": jax.default_backend(),
        "num_devices": run.mesh.size,
        "num_processes": jax.process_count(),
    }


def _headline(scores: Scores, select_by: str) -> str:
    parts = []
    for split, values in scores.items():
        names = (name for name in dict.fromkeys(("accuracy", "agreement", select_by)) if name in values)
        shown = [f"{n} {values[n]:.4f}" if n in ("nll", "kl") else f"{n} {100 * values[n]:.2f} %" for n in names]
        parts.append(f"{split} {' '.join(shown)}")
    return ", ".join(parts)

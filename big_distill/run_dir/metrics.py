"""Logs the metrics of a run (TensorBoard, JSON lines), shows its progress, and measures throughput."""

from __future__ import annotations

import contextlib
import importlib
import json
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import tqdm

from big_distill.config import PROFILED_STEPS
from big_distill.errors import RunError
from big_distill.files import atomic
from big_distill.run_dir.layout import to_json
from big_distill.terminal import interval, reporting

sys.modules["clu.metric_writers.summary_writer"] = importlib.import_module("big_distill.run_dir.tensorboard_writer")
from clu import metric_writers, periodic_actions  # noqa: E402

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Writes the metrics of one run to `metrics.jsonl` and TensorBoard event files. Only process 0 writes.

    A resumed run first cuts `metrics.jsonl` back to the step it resumes from, so that every step appears once and in
    order. If `evaluated`, that step's evaluation stays. A file that cannot be written raises RunError.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int, evaluated: bool = True):
        self._main = jax.process_index() == 0
        self.tensorboard: Any = None
        if not self._main:
            return
        self._path = workdir / METRICS_FILE
        with self._writing():
            _cut(self._path, start_step, evaluated)
            self._lines = self._path.open("a", buffering=1)
            self.tensorboard = metric_writers.SummaryWriter(str(workdir))
        self._logging = metric_writers.LoggingWriter()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes scalars. Only `seconds` and `train/images_per_second` depend on the clock."""
        if not self._main:
            return
        scalars = {name: float(value) for name, value in values.items()}
        with self._writing():
            self._lines.write(to_json({"step": step, **scalars, "seconds": round(time.time(), 3)}) + "\n")
            self.tensorboard.write_scalars(step, scalars)
        self._logging.write_scalars(step, scalars)

    def flush(self) -> None:
        """Puts all that was written into the files. Call it before a save, so that no saved step lacks its metrics."""
        if self._main:
            with self._writing():
                self._lines.flush()
                self.tensorboard.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._main:
            with self._writing(), contextlib.closing(self._lines), contextlib.closing(self.tensorboard):
                pass

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunError(f"the metrics in {self._path.parent} cannot be written: {error.strerror}") from error


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """Reads the lines of a run's `metrics.jsonl`. A last line that a kill cut short is left out.

    Raises:
      RunError: another line is damaged.
    """
    path = workdir / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    read = []
    for number, line in enumerate(lines, 1):
        if line.endswith(b"\n"):
            try:
                values = json.loads(line)
                if not isinstance(values, dict) or type(values.get("step")) is not int:
                    raise ValueError("it has no step")
            except (ValueError, RecursionError) as error:
                raise RunError(f"{path}, line {number} is damaged: {error}; remove the line to go on") from error
            read.append(values)
    return read


def last_logged(workdir: pathlib.Path) -> int:
    """Returns the last step whose loss is in a run's metrics, or 0 if none is."""
    return max((int(line["step"]) for line in read_metrics(workdir) if "train/loss" in line), default=0)


def _cut(path: pathlib.Path, step: int, evaluated: bool) -> None:
    kept = [
        line
        for line in read_metrics(path.parent)
        if line["step"] < step or (line["step"] == step and (evaluated or "train/loss" in line))
    ]
    atomic.write(path, "".join(to_json(line) + "\n" for line in kept).encode())


class Progress:
    """Shows the steps, their rate, the time left and the loss; and makes CLU's report for its platforms.

    On a terminal it is a bar. Elsewhere it is a line every `terminal.PERIOD_SECONDS`.
    """

    def __init__(self, name: str, start_step: int, total_steps: int, writer: Any | None):
        terminal = sys.stderr.isatty()
        steps = {"initial": start_step, "total": total_steps, "unit": "step"}
        hidden = jax.process_index() != 0 or not terminal
        self._bar = tqdm.tqdm(desc=name, **steps, disable=hidden, dynamic_ncols=True, mininterval=0.5)
        self._report = periodic_actions.ReportProgress(num_train_steps=total_steps, writer=writer)
        self._name, self._step, self._total_steps, self._loss = name, start_step, total_steps, ""
        self._other = "prepares the first step"
        self._before = start_step, time.monotonic()
        self._lines = contextlib.ExitStack()
        if not terminal:
            self._lines.enter_context(reporting(self._status))

    def _status(self) -> str:
        """Returns the line; the rate is that since the line before."""
        (before, then), (step, now) = self._before, (self._step, time.monotonic())
        self._before = step, now
        where = f"step {step:,} of {self._total_steps:,}"
        if self._other or step == before:
            return f"{self._name}: {self._other or 'trains'}, at {where}{self._loss}"
        rate = (step - before) / (now - then)
        left = interval((self._total_steps - step) / rate)
        return f"{self._name}: {where}, {rate:.3g} steps/s, {left} left{self._loss}"

    def note(self, other: str) -> None:
        """Notes what is done in place of steps, until another note or the next step; '' if nothing is."""
        self._other = other

    def update(self, step: int) -> None:
        """Moves the bar to the step that was done last."""
        if self._other:  # its time is none of the steps'
            self._before = step, time.monotonic()
        self._step, self._other = step, ""
        self._bar.update(step - self._bar.n)
        self._report(step)

    def show(self, loss: Any) -> None:
        """Writes the loss beside the bar."""
        self._loss = f", loss {float(loss):.4g}"
        self._bar.set_postfix(loss=f"{float(loss):.4g}", refresh=False)

    def close(self) -> None:
        """Closes the bar and leaves it as it is."""
        self._lines.close()
        self._bar.close()


class Stopwatch:
    """Counts the seconds between `start` and `stop`, without pauses. Images/s is computed from them."""

    def __init__(self, seconds: float = 0.0):
        self.seconds = seconds
        self._since: float | None = None

    def start(self) -> None:
        """Starts, unless it runs already."""
        self._since = self._since or time.monotonic()

    def stop(self) -> None:
        """Stops, and adds the time to `seconds`."""
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
            self._since = None

    def rate(self, count: int) -> float:
        """Returns `count` per second up to now, or 0 before the start."""
        seconds = self.seconds + (time.monotonic() - self._since if self._since is not None else 0.0)
        return count / seconds if seconds else 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time of what runs inside."""
        ran = self._since is not None
        self.stop()
        yield
        if ran:
            self.start()


def profiler(logdir: pathlib.Path, after_step: int) -> Callable[[int], Any]:
    """Returns a function to call after every dispatch. It traces steps after `after_step` for TensorBoard; 0: none."""
    if not after_step:
        return lambda step: None
    return periodic_actions.Profile(
        logdir=logdir,
        first_profile=after_step,
        num_profile_steps=PROFILED_STEPS,
        profile_duration_ms=None,
        every_secs=None,
    )

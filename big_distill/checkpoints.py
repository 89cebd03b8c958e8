"""Checkpoints of {state, meta} through Orbax, and signals that ask for one."""

from __future__ import annotations

import math
import pathlib
import signal
import sys
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from big_distill.config import Config
from big_distill.errors import RunError
from big_distill.state import TrainState
from big_distill.workdir import CHECKPOINTS_DIR


class Checkpoints:
    """The checkpoints of one run: the newest few, and the best on the validation split.

    Saving is asynchronous: `save` returns once the state is copied off the device; `close` waits for what is under
    way. A step that is half written when the process dies is invisible to `restore`.
    """

    def __init__(self, directory: pathlib.Path, keep_latest: int, keep_best: int, read_only: bool = False):
        policies: list[Any] = [checkpoint_managers.LatestN(keep_latest)]
        if keep_best:
            policies.append(
                checkpoint_managers.BestN(get_metric_fn=_accuracy, n=keep_best, keep_checkpoints_without_metrics=False)
            )
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                best_fn=_accuracy if keep_best else None,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=not read_only,  # in a live run they are the saves under way
                read_only=read_only,
                create=not read_only,
            ),
        )

    @classmethod
    def of(cls, config: Config, workdir: pathlib.Path, read_only: bool = False) -> Checkpoints:
        """Those of a run; without a validation split none is the best."""
        keep_best = config.keep_best if config.evaluated_on.validation else 0
        return cls(workdir / CHECKPOINTS_DIR, config.keep_latest, keep_best, read_only)

    def save(
        self, step: int, state: TrainState, meta: Mapping[str, Any], validation: Mapping[str, float] | None
    ) -> None:
        """Saves a step.

        Args:
          step: number of updates applied to `state`.
          state: what a resume continues from.
          meta: JSON-ready facts that a resume checks.
          validation: metrics on the validation split, if it was just evaluated; `accuracy` decides what is best.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(dict(meta)))
        metrics = {"accuracy": validation["accuracy"]} if validation else {}
        self._manager.save(step, args=args, metrics=metrics, force=True)

    def all_steps(self) -> list[int]:
        """Every saved step, rising."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """The newest saved step, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The saved step with the best validation accuracy, or None without any; waits for saves under way."""
        self._manager.wait_until_finished()
        scored = [step for step in self.all_steps() if self._manager.metrics(step)]
        return max(scored, key=lambda step: (_accuracy(self._manager.metrics(step)), step), default=None)

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """The state of a step, placed as the shardings of `abstract_state` (a tree of ShapeDtypeStruct) say."""
        return self._restore(step, state=ocp.args.StandardRestore(abstract_state)).state

    def restore_variables(self, step: int, abstract: Any) -> dict[str, Any]:
        """The student of a step alone, whatever devices it was trained on.

        Args:
          step: a saved one.
          abstract: its variables as a tree of ShapeDtypeStruct with shardings.
        """
        args = ocp.args.PyTreeRestore(
            item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
        )
        return self._restore(step, state=args).state

    def meta(self, step: int) -> dict[str, Any]:
        """The meta of a step: read before the restore target is built."""
        return self._restore(step, meta=ocp.args.JsonRestore()).meta

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (KeyError, OSError, TypeError, ValueError) as error:  # Orbax lets through what its parsers raise
            reason = str(error).partition("\n")[0][:200]
            raise RunError(
                f"checkpoint {self._manager.directory / str(step)} cannot be read ({reason}); without it the same "
                "command goes on from the one before"
            ) from error

    def close(self) -> None:
        """Waits until everything is on disk; raises what an asynchronous save raised."""
        self._manager.wait_until_finished()
        self._manager.close()


def _accuracy(metrics: Mapping[str, float]) -> float:
    """Of a step that was saved without an evaluation: less than any."""
    return metrics.get("accuracy", -math.inf)


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Whether a run directory holds a step that was saved whole."""
    directory = workdir / CHECKPOINTS_DIR
    return directory.is_dir() and bool(ocp.utils.checkpoint_steps(directory))


class Preemption:
    """Remembers SIGTERM and SIGINT (`requested`), for the loop to save and leave at the next step boundary.

    With several processes JAX's preemption service catches SIGTERM and agrees on a step at which all of them save.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, *_: Any) -> None:
        if not self.requested:
            print("big_distill: finishing the step, then saving", file=sys.stderr)
        self.requested = True

    def reached(self, step: int) -> bool:
        """Whether to save and leave after this step; every process gets the same answer."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.requested

"""Saves and restores checkpoints of {state, meta} through Orbax, and verifies them before they are used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from big_distill.config import Config
from big_distill.errors import DISK_ERRORS, RunError
from big_distill.files import checksums
from big_distill.parallel import processes
from big_distill.run_dir.layout import CHECKPOINTS_DIR, DAMAGED_DIR
from big_distill.state import TrainState
from big_distill.terminal import say

_SELECTABLE = next(f for f in dataclasses.fields(Config) if f.name == "select_by").metadata["choices"]
_LESS_IS_BETTER = ("nll", "kl")
_UNLISTED = ("_CHECKPOINT_METADATA", "commit_success.txt")  # older checkpoints have no sums of these two


class _Pinned(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Makes a step of a directory that all processes have written: adds the checksums of its files, then renames it.

    Orbax's own would write two more files in between, which no list could hold: when the step was saved, and that.
    """

    async def finalize(self) -> None:
        """Makes the step, on process 0, in the thread that saves."""
        if self._checkpoint_metadata_store is not None:
            self._checkpoint_metadata_store.wait_until_finished()
        checksums.write(pathlib.Path(self.get()))
        self.get().rename(self.get_final())


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False: only the loop asks JAX's service, and counts its questions (`Preemption.reached`)."""
        return False


class Checkpoints:
    """Keeps the checkpoints of one run: the newest few, and the best on the validation split.

    Saving is asynchronous. `save` returns once the state is copied off the device. `close` waits for saves under way. A
    step appears by one rename, whole and with the checksums of its files. A step that is half written when the process
    dies is ignored. `set_aside_damaged` verifies the sums when a session begins, and so does a `read_only` restore.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, read_only: bool = False):
        """Opens the checkpoints of a run. Without a validation split none is the best."""
        policies: list[Any] = [checkpoint_managers.LatestN(config.keep_latest)]
        self._select_by = config.select_by
        best_fn = self._goodness if config.keep_best and config.evaluated_on.validation else None
        if best_fn is not None:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=best_fn, n=config.keep_best, keep_checkpoints_without_metrics=False
                )
            )
        self._workdir, self._directory = workdir, (workdir / CHECKPOINTS_DIR).absolute()
        self._saving, self._read_only = 0, read_only
        try:
            self._manager = _Manager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    best_fn=best_fn,
                    preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                    cleanup_tmp_directories=not read_only,  # in a live run they are saves under way
                    read_only=read_only,
                    create=not read_only,
                    temporary_path_class=_Pinned,
                ),
            )
        except (KeyError, OSError, TypeError, ValueError) as error:  # raised while it reads the metrics
            damaged = _in_words(verify(workdir))
            what = f"hold damaged ones ({damaged})" if damaged else f"cannot be opened ({_one_line(error)})"
            raise RunError(f"the checkpoints in {workdir / CHECKPOINTS_DIR} {what}") from error

    def save(
        self, step: int, state: TrainState, meta: Mapping[str, Any], validation: Mapping[str, float] | None
    ) -> None:
        """Saves a step with JSON-ready facts that a resume checks.

        `validation` has the metrics on the validation split, if it was evaluated at this step. Those that `select_by`
        may name are kept, so that a resume may choose by another. Without labels there is no `accuracy`.
        """
        args = ocp.args.Composite(state=ocp.args.StandardSave(_tree_of(state)), meta=ocp.args.JsonSave(dict(meta)))
        metrics = {n: value for n, value in (validation or {}).items() if n in _SELECTABLE and math.isfinite(value)}
        if self._select_by not in metrics:
            metrics = {}  # Orbax keeps the best of the steps that have metrics
        self._wait()
        self._saving = step
        with self._errors_of_saving():
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def check(self) -> None:
        """Raises what the last save has raised, once it is over. Does not wait for a save under way."""
        if self._saving and not self._manager.is_saving_in_progress():
            self._wait()
            self._saving = 0  # whole: there is nothing to ask any more

    def _wait(self) -> None:
        """Waits until everything is on disk. It raises what an asynchronous save raised."""
        with self._errors_of_saving():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _errors_of_saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax, TensorStore or the operating system: the disk is full, or gone
            if processes.is_peer_lost(error):
                raise
            whole = self.latest_step()
            before = "none was saved before" if whole is None else f"the newest whole one is step {whole:,}"
            raise RunError(
                f"the checkpoint of step {self._saving:,} could not be saved in {self._directory} "
                f"({_one_line(error)}); {before}"
            ) from error

    def all_steps(self) -> list[int]:
        """Lists every saved step, rising."""
        return saved_steps(self._workdir)

    def latest_step(self) -> int | None:
        """Returns the newest saved step, or None."""
        return max(self.all_steps(), default=None)

    def best_step(self) -> int | None:
        """Waits for saves under way, and returns the step that is best by `select_by`, or None without any."""
        self._wait()
        metrics = {step: self._manager.metrics(step) or {} for step in self.all_steps()}
        scored = [step for step in metrics if self._select_by in metrics[step]]
        return max(scored, key=lambda step: (self._goodness(metrics[step]), step), default=None)

    def _goodness(self, metrics: Mapping[str, float]) -> float:
        """Returns what is greatest for the best step, or minus infinity for a step that was not so measured."""
        sign = -1 if self._select_by in _LESS_IS_BETTER else 1
        return sign * metrics.get(self._select_by, -sign * math.inf)

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Restores a step's state, placed by the shardings of `abstract_state` (a tree of ShapeDtypeStruct)."""
        return TrainState(**self._restore(step, state=ocp.args.StandardRestore(_tree_of(abstract_state))).state)

    def restore_variables(self, step: int, abstract: Any) -> dict[str, Any]:
        """Restores only the student of a step, placed as `restore` does, whatever devices it was trained on."""
        args = ocp.args.PyTreeRestore(
            item=abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract), partial_restore=True
        )
        return self._restore(step, state=args).state

    def _restore(self, step: int, **items: Any) -> Any:
        directory = self._directory / str(step)
        if self._read_only and (damage := _damage(directory)):
            raise RunError(f"checkpoint {directory} is damaged ({damage})")
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except (KeyError, OSError, TypeError, ValueError) as error:  # Orbax lets through what its parsers raise
            raise RunError(f"checkpoint {directory} cannot be read ({_one_line(error)})") from error

    def close(self) -> None:
        """Waits until everything is on disk, and closes. It raises what an asynchronous save raised."""
        self._wait()
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None or not processes.is_peer_lost(error):  # a save of all processes would wait for the lost one
            self.close()


def _tree_of(state: TrainState) -> dict[str, Any]:
    """Maps names to the parts of a state that a checkpoint holds. As in older ones, an empty objective is left out."""
    names = (field.name for field in dataclasses.fields(state))
    return {name: getattr(state, name) for name in names if name != "objective" or state.objective}


def saved_steps(workdir: pathlib.Path) -> list[int]:
    """Lists the steps of the checkpoints in a run directory, rising. It does not check that they are intact."""
    directory = workdir / CHECKPOINTS_DIR
    names = [path.name for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def read_meta(workdir: pathlib.Path, step: int) -> dict[str, Any]:
    """Reads the facts that were saved with a step, and nothing else of it.

    Raises:
      RunError: they cannot be read.
    """
    path = workdir / CHECKPOINTS_DIR / str(step) / "meta" / "metadata"
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"checkpoint {path.parents[1]} cannot be read ({_one_line(error)})") from error


def verify(workdir: pathlib.Path) -> dict[int, str | None]:
    """Says for every saved step, rising, what is wrong with its files, or None if they are as they were saved."""
    verdicts = {step: _damage(workdir / CHECKPOINTS_DIR / str(step)) for step in saved_steps(workdir)}
    return {step: what for step, what in verdicts.items() if step in saved_steps(workdir)}  # a live run removes some


def _damage(directory: pathlib.Path) -> str | None:
    damage = checksums.damage(directory, _UNLISTED)
    if damage is None:
        step = json.loads((directory / "meta" / "metadata").read_bytes()).get("step")
        damage = None if directory.name == str(step) else f"it is step {step}, under another name"
    return damage


def set_aside_damaged(workdir: pathlib.Path) -> None:
    """Moves damaged steps out of the way of a resume and says so. Process 0 does this for all.

    Raises:
      RunError: all saved steps are damaged; they stay where they are.
    """

    def set_aside() -> None:
        verdicts = verify(workdir)
        damaged = {step: what for step, what in verdicts.items() if what}
        if damaged and len(damaged) == len(verdicts):
            raise RunError(
                f"every checkpoint in {workdir / CHECKPOINTS_DIR} is damaged ({_in_words(damaged)}): bring one back "
                "from a copy, or choose another --workdir to begin anew"
            )
        for step, what in damaged.items():
            aside = workdir / DAMAGED_DIR / f"{step}-{time.strftime('%Y%m%dT%H%M%S')}"
            aside.parent.mkdir(exist_ok=True)
            shutil.move(workdir / CHECKPOINTS_DIR / str(step), aside)
            say(f"checkpoint {step:,} of {workdir} is damaged ({what}) and is now {aside}")

    processes.on_first_process(set_aside)


def _in_words(verdicts: Mapping[int, str | None]) -> str:
    return "; ".join(f"{step}: {what}" for step, what in verdicts.items() if what)


def _one_line(error: BaseException) -> str:
    text = str(error)
    for number in DISK_ERRORS:
        if os.strerror(number) in text:  # a long line of TensorStore's says no more than this
            return os.strerror(number)
    return (text.partition("\n")[0] or type(error).__name__)[:200]

"""Evaluates a network, alone or beside its teacher, on any split of a run's data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
from jax.sharding import Mesh

from big_distill import compress, weights
from big_distill import teacher as teachers
from big_distill.config import Config, SourceConfig
from big_distill.data import Source
from big_distill.data.pipeline import EvalPipeline
from big_distill.data.reading import share_cut
from big_distill.data.sources import BUILT_IN, check_classes, open_source
from big_distill.errors import ConfigError, RunError
from big_distill.parallel import sharding
from big_distill.run_dir.checkpoints import Checkpoints
from big_distill.run_dir.layout import CHECKPOINTS_DIR, read_config
from big_distill.state import Card, Model, Teacher, materialize
from big_distill.step import scoring, steps
from big_distill.terminal import say

EvalStep = Callable[..., scoring.Sums]
_LARGEST_CUT = 0.2  # share of the median image that evaluation may cut off without a word
_Result = TypeVar("_Result")


class Stopped(Exception):
    """An evaluation was asked to stop before its end."""


def evaluate(
    eval_step: EvalStep,
    variables: weights.Variables,
    teacher: Teacher | None,
    data: EvalPipeline,
    mesh: Mesh,
    stop: Callable[[], bool] | None = None,
) -> dict[str, float]:
    """Computes the metrics of one network on one split (see `scoring.metrics_of`). Counts every readable example once.

    Raises:
      Stopped: `stop` returned True. It is asked before every batch.
    """
    return scoring.metrics_of(add_up(eval_step, variables, teacher, data, mesh, stop))


def add_up(
    eval_step: EvalStep,
    variables: weights.Variables,
    teacher: Teacher | None,
    data: EvalPipeline,
    mesh: Mesh,
    stop: Callable[[], bool] | None = None,
) -> scoring.Totals:
    """Adds up the sums of one network on one split, each readable example once.

    Raises:
      Stopped: `stop` returned True. It is asked before every batch.
    """

    def sums() -> Iterator[scoring.Sums]:
        for batch in data:
            if stop is not None and stop():
                raise Stopped
            yield eval_step(variables, teacher, sharding.to_devices(mesh, batch))

    return scoring.add_up(sums())


def jit_eval_step(student: weights.ConfigArchitecture, config: Config, mesh: Mesh, confusion: bool = False) -> EvalStep:
    """Jits the evaluation step of a network. Every device gets its sums, with `confusion` also that matrix."""
    return jit_eval(functools.partial(steps.make_eval_step, confusion=confusion), student, config, mesh)


def jit_eval(
    make_step: Callable[[Model, Card], Callable[..., _Result]],
    student: weights.ConfigArchitecture,
    config: Config,
    mesh: Mesh,
) -> Callable[..., _Result]:
    """Jits `make_step(model, card)` for a network. Every device gets the result."""
    step = make_step(sharding.gathering(mesh, student.build(config.dtype)), student.card)
    return jax.jit(steps.at_precision(step, config.matmul_precision), out_shardings=sharding.replicated(mesh))


def mesh_for(config: Config) -> Mesh:
    """Makes a mesh of all devices for a run trained elsewhere, and lowers `mesh.fsdp` to what they allow."""
    return sharding.make_mesh(math.gcd(config.mesh.fsdp, jax.device_count()))


def open_split(config: Config, source: SourceConfig, split: str) -> Source:
    """Opens a split of a data set of the run: `config.source` or `config.evaluated_on`."""
    size, channels = config.view.image_size, config.view.channels
    if config.eval_source.name and source == config.source:
        source = dataclasses.replace(source, validation=None, test=None)  # nothing is held out of it
    return open_source(source, split, num_classes=config.num_classes, image_size=size, channels=channels)


def open_eval(config: Config, split: str) -> EvalPipeline:
    """Opens the evaluation batches of a split. `eval_batch_size` gives their size for all processes' devices."""
    source = open_split(config, config.evaluated_on, split)
    check_classes(source, config.num_classes)
    batch_size = eval_batch_size(config, jax.device_count())
    return EvalPipeline(source, config.view, config.evaluated_on, batch_size, jax.process_index(), jax.process_count())


def with_depth(config: Config, bit_depth: int) -> Config:
    """Returns the config with all its data read at one bit depth."""
    source, eval_source = (
        dataclasses.replace(s, bit_depth=str(bit_depth)) if s.name else s for s in (config.source, config.eval_source)
    )
    return dataclasses.replace(config, source=source, eval_source=eval_source)


def warn_of_cut(config: Config, source: Source) -> None:
    """Says if evaluation cuts more than a fifth off the median image of a split."""
    if config.view.fit == "crop" and (cut := share_cut(source)) > _LARGEST_CUT:
        say(
            f"{source.name}: evaluation sees the centre square, without {100 * cut:.0f} % of the median image "
            "(config.view.fit=crop); squash and pad show all of it"
        )


def with_data_dir(config: Config, data_dir: str | None) -> Config:
    """Returns the config with its TFDS sets in `data_dir`; None leaves them where the run had them.

    Raises:
      ConfigError: the run is not evaluated on a set that has a data directory.
    """
    if not data_dir:
        return config
    if config.evaluated_on.name in BUILT_IN:
        where = f" {config.evaluated_on.path}" if config.evaluated_on.path else ""
        raise ConfigError(
            f"--data_dir={data_dir} is a root of TFDS sets, but the run is evaluated on its "
            f"{config.evaluated_on.name}{where}"
        )
    source, eval_source = (dataclasses.replace(s, data_dir=data_dir) for s in (config.source, config.evaluated_on))
    return dataclasses.replace(config, source=source, eval_source=eval_source)


def eval_batch_size(config: Config, num_devices: int) -> int:
    """Computes the size of a global evaluation batch: that of a step's part, rounded up to a multiple of devices."""
    return -(-config.batch_size // config.accumulate_steps // num_devices) * num_devices


def evaluate_run(
    workdir: pathlib.Path,
    split: str,
    step: str = "final",
    data_dir: str | None = None,
) -> dict[str, float]:
    """Computes the metrics of a run's student on any split, as `add_up_run` does."""
    return scoring.metrics_of(add_up_run(workdir, split, step, data_dir))


def add_up_run(
    workdir: pathlib.Path,
    split: str,
    step: str = "final",
    data_dir: str | None = None,
) -> scoring.Totals:
    """Evaluates a run's student on any split of its data set, against labels and its teacher: its sums, by class too.

    Args:
      workdir: the run directory.
      split: a split in TFDS syntax.
      step: 'final' (the weights of a finished run), 'latest', 'best', or the number of a checkpoint.
      data_dir: the directory of TFDS sets, if it is not the run's.

    Raises:
      RunError: no run, or no such step in it.
    """
    config = with_data_dir(read_config(workdir), data_dir)
    mesh = mesh_for(config)
    data = open_eval(config, split)
    warn_of_cut(config, data.source)
    class_names = weights.read_architecture(workdir).card.class_names
    teacher = teachers.load(config, workdir, mesh, class_names)
    student = student_of(workdir, step, mesh)
    eval_step = jit_eval_step(student.architecture, config, mesh, confusion=True)
    return add_up(eval_step, student.variables, teacher, data, mesh)


def student_of(workdir: pathlib.Path, step: str, mesh: Mesh) -> weights.Network:
    """Loads the student of a run at its end ('final') or at a checkpoint; see `add_up_run`."""
    if step == "final":
        return weights.load(workdir)
    config = read_config(workdir)
    if not (workdir / CHECKPOINTS_DIR).is_dir():
        raise RunError(f"{workdir} has no checkpoints yet")
    with contextlib.closing(Checkpoints(config, workdir, read_only=True)) as checkpoints:
        known: dict[str, int | None] = {str(saved): saved for saved in checkpoints.all_steps()}
        known |= {"latest": checkpoints.latest_step(), "best": checkpoints.best_step()}
        found = known.get(step)
        if found is None:
            there = ", ".join(name for name, saved in known.items() if saved is not None) or "none"
            raise RunError(f"{workdir} has no checkpoint {step!r}; there are: {there}")
        student = weights.read_architecture(workdir)
        abstract = student.abstract_variables()
        scheme = compress.make_scheme(config, abstract["params"])
        params, aux = jax.eval_shape(scheme.encode, abstract["params"])
        saved = {"batch_stats": {}, **abstract, "params": params, "aux": aux}
        state = checkpoints.restore_variables(found, sharding.place(saved, sharding.rule(mesh, saved)))
        variables = {"params": materialize(state["params"], state["aux"]), "batch_stats": state["batch_stats"]}
        return weights.Network(student, variables)

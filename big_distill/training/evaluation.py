"""Evaluates a network, alone or beside its teacher, on any split of a run's data."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import jax
from jax.sharding import Mesh

from big_distill import compress, weights
from big_distill import teacher as teachers
from big_distill.config import PATH_SOURCES, Config, SourceConfig
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

NO_FIELDS: Mapping[str, str | None] = MappingProxyType({})
"""Leaves the data of a run as they are."""
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


def open_split(config: Config, source: SourceConfig, split: str, bit_depth: int | None = None) -> Source:
    """Opens a split of a data set of the run: `training_source` or `config.evaluated_on`.

    `bit_depth` is that of the network that sees the split; None takes the config's.
    """
    size, channels = config.view.image_size, config.view.channels
    if bit_depth is not None:
        source = dataclasses.replace(source, bit_depth=str(bit_depth))
    return open_source(source, split, num_classes=config.num_classes, image_size=size, channels=channels)


def training_source(config: Config) -> SourceConfig:
    """Returns the data that a run is trained on. If it is evaluated on others, nothing is held out of them."""
    if not config.eval_source.name:
        return config.source
    return dataclasses.replace(config.source, validation=None, test=None)


def open_eval(config: Config, split: str, bit_depth: int, class_names: Sequence[str] = ()) -> EvalPipeline:
    """Opens the evaluation batches of a split. `eval_batch_size` gives their size for all processes' devices.

    Args:
      config: that of the run.
      split: a split of `config.evaluated_on`.
      bit_depth: that of the network which is evaluated.
      class_names: those of its logits, if they are known.

    Raises:
      DataError: no such split, or other classes.
    """
    source = open_split(config, config.evaluated_on, split, bit_depth)
    check_classes(source, config.num_classes, class_names)
    batch_size = eval_batch_size(config, jax.device_count())
    return EvalPipeline(source, config.view, config.evaluated_on, batch_size, jax.process_index(), jax.process_count())


def remarks(config: Config, source: Source) -> list[str]:
    """Lists what to say about a split on which a network is evaluated: what its source says, and if much is cut off."""
    lines = list(source.remarks)
    if config.view.fit == "crop" and (cut := share_cut(source)) > _LARGEST_CUT:
        lines.append(
            f"{source.name}: evaluation sees the centre square, without {100 * cut:.0f} % of the median image "
            "(config.view.fit=crop); squash and pad show all of it"
        )
    return lines


def with_data(config: Config, fields: Mapping[str, str | None]) -> Config:
    """Returns the config with other data to evaluate on. The training split stays, but follows another `data_dir`.

    Args:
      config: that of a run.
      fields: fields of `config.source`; None leaves one as it is. With a `name` they describe other data: these have
        no group, label or split of the run's. Without one they say where the run's own data lie now.

    Raises:
      ConfigError: a field means nothing for these data.
    """
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if not given:
        return config
    own = config.evaluated_on
    if "name" in given:
        kept = {f.name: getattr(own, f.name) for f in dataclasses.fields(own) if f.metadata["kind"] == "cosmetic"}
        other = dataclasses.replace(SourceConfig(**kept), **{"test": None, **given})
    else:
        other = dataclasses.replace(own, **given)
    where = f"the run is evaluated on its {other.name} {own.path or ''}".rstrip()
    if "data_dir" in given and other.name in BUILT_IN:
        raise ConfigError(
            f"--data_dir={given['data_dir']} is a root of TFDS sets, but {where}; "
            "--config.source.path says where that lies"
        )
    if "path" in given and other.name not in PATH_SOURCES and ":" not in other.name:
        raise ConfigError(
            f"--config.source.path={given['path']}, but {where}, which has no path; --config.source.name=folder has one"
        )
    if given.keys() == {"data_dir"}:
        config = dataclasses.replace(config, source=dataclasses.replace(config.source, **given))
    return dataclasses.replace(config, eval_source=other)


def eval_batch_size(config: Config, num_devices: int) -> int:
    """Computes the size of a global evaluation batch: that of a step's part, rounded up to a multiple of devices."""
    return -(-config.batch_size // config.accumulate_steps // num_devices) * num_devices


def evaluate_run(
    workdir: pathlib.Path,
    split: str,
    step: str = "final",
    source: Mapping[str, str | None] = NO_FIELDS,
) -> dict[str, float]:
    """Computes the metrics of a run's student on any split, as `add_up_run` does."""
    return scoring.metrics_of(add_up_run(workdir, split, step, source)[1])


def add_up_run(
    workdir: pathlib.Path,
    split: str,
    step: str = "final",
    source: Mapping[str, str | None] = NO_FIELDS,
) -> tuple[str, scoring.Totals]:
    """Evaluates a run's student on any split, against labels and its teacher. Returns the split's name and its sums.

    Args:
      workdir: the run directory.
      split: a split in TFDS syntax.
      step: 'final' (the weights of a finished run), 'latest', 'best', or the number of a checkpoint.
      source: fields of other data (see `with_data`).

    Raises:
      RunError: no run, or no such step in it.
    """
    config = with_data(read_config(workdir), source)
    mesh, architecture = mesh_for(config), weights.read_architecture(workdir)
    data = open_eval(config, split, architecture.bit_depth, architecture.card.class_names)
    for line in remarks(config, data.source):
        say(line)
    teacher = teachers.load(config, workdir, mesh, architecture.card.class_names)
    student = student_of(workdir, step, mesh)
    eval_step = jit_eval_step(student.architecture, config, mesh, confusion=True)
    return data.source.name, add_up(eval_step, student.variables, teacher, data, mesh)


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

"""Plans a run before there is a machine for it: compiles the run's own steps for devices that are not there."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import OWN_TEACHER, Config
from big_distill.data.pipeline import abstract_chunk, abstract_draws, abstract_eval_batch
from big_distill.errors import ConfigError
from big_distill.parallel import sharding
from big_distill.planning import chips
from big_distill.planning.costs import Cost, compile_step, largest_batch
from big_distill.planning.plan import Plan, Stage
from big_distill.step import objectives
from big_distill.training.computation import build
from big_distill.training.evaluation import eval_batch_size
from big_distill.training.setup import before_reshaping

_PATIENT_STEPS = 5_000  # fewer are few for a distillation: the shortest run of the paper's Table 4 has 6,468
_SAVE_SECONDS = 30.0
_MAX_IMAGES = 1 << 20  # images a chip: more than any chip holds, and few enough for 32-bit indices on all of them
_LAUNCH_SECONDS = 2e-4  # the order of magnitude of a dispatch by the host; not measured beside a TPU


def plan(name: str, config: Config, where: chips.Slice, with_evaluation: bool = True) -> Plan:
    """Compiles the steps of a config, resolved for these devices, and of every network that is trained for it.

    Raises:
      ConfigError: a teacher of which nothing is known.
    """
    planned = [_stage(stage, trained, where, with_evaluation) for stage, trained in stages(config)]
    return Plan(name, where, tuple(stage for stage, _ in planned), planned[-1][1])


def check_batches(config: Config, where: chips.Slice, batches: Sequence[int]) -> None:
    """Raises ConfigError if a number of images a chip cannot be split, or is more than any chip holds."""
    parts = _parts(config, where)
    for batch in batches:
        if batch > _MAX_IMAGES:
            raise ConfigError(f"--batches: {batch} images a chip; expected at most {_MAX_IMAGES:,}")
        if batch < 1 or batch % parts:
            raise ConfigError(f"--batches: {batch} images a chip cannot be split in {parts} (cores, accumulate_steps)")


def check_slices(where: chips.Slice, others: Sequence[chips.Slice]) -> None:
    """Raises ConfigError if one of the others is not a slice of the same chips."""
    kind = where.name.partition(":")[0]
    for other in others:
        if other.name.partition(":")[0] != kind:
            raise ConfigError(f"--weak_scaling={other.name}: expected slices of {kind}, as --topology={where.name}")


def with_batches(one: Plan, config: Config, batches: Sequence[int]) -> Plan:
    """Adds to a plan the student's train step with other numbers of images a chip."""
    student, costs = one.student, {}
    for batch in batches:
        other = dataclasses.replace(config, batch_size=batch * one.slice.num_chips)
        costs[batch] = student.train if other == config else Blueprint(other, one.slice).train()[0]
    known, parts = {**costs, student.batch_per_chip: student.train}, _parts(config, one.slice)
    largest = largest_batch(known, student.constant_bytes, one.slice, parts, student.resident_bytes)
    student = dataclasses.replace(student, largest_batch=largest)
    return dataclasses.replace(one, stages=(*one.stages[:-1], student), batches=costs)


def with_slices(one: Plan, config: Config, slices: Sequence[chips.Slice]) -> Plan:
    """Adds to a plan the student's train step on other slices, with as many images a chip: weak scaling."""
    costs = []
    for where in slices:
        other = dataclasses.replace(config, batch_size=one.student.batch_per_chip * where.num_chips)
        costs.append((where, Blueprint(other, where).train()[0]))
    return dataclasses.replace(one, slices=tuple(costs))


def _parts(config: Config, where: chips.Slice) -> int:
    """Returns the number that has to divide a chip's batch."""
    return where.devices_per_chip * config.accumulate_steps


def stages(config: Config, prefix: str = "", shares_teacher: bool = False) -> list[tuple[str, Config]]:
    """Lists a config and the configs in it, in the order of training, each with the sub-directory of its run.

    A first stage that has the run's own teacher `shares_teacher`: the teacher's config is in it, but is no stage.
    """
    nested, first = config.teacher.config, config.init_config
    before = stages(nested, f"{prefix}teacher/") if nested is not None and not shares_teacher else []
    if first is not None:
        shares = first.teacher.path == OWN_TEACHER
        if shares:
            first = dataclasses.replace(first, teacher=dataclasses.replace(first.teacher, path=None, config=nested))
        before += stages(first, f"{prefix}init/", shares)
    return [*before, (prefix.rstrip("/") or "student", config)]


class Blueprint:
    """Holds a run's steps and their arguments on a slice, as shapes and dtypes."""

    def __init__(self, config: Config, where: chips.Slice):
        self._where = where
        self._mesh = sharding.make_mesh(config.mesh.fsdp, where.devices)
        self.config = before_reshaping(config)
        self.networks = teachers.announced(self.config)
        self.teacher = teachers.abstract(self.networks, self.config, self._mesh)
        student = weights.architecture_of(self.config, (), None)
        self.computation = build(self.config, student, self._mesh, self.teacher)
        self.state = self.computation.abstract_state
        # Unlabelled folders and your own sources without labels are assumed to have labels: four bytes an image.
        labelled = not config.eval_source.name or "labels" in objectives.build(config.objective).reads
        self.chunk = sharding.place_batch(self._mesh, abstract_chunk(config.view, config.batch_size, labelled), axis=1)
        drawn = sharding.place_batch(self._mesh, abstract_draws(config.view, config.batch_size), axis=1)
        self.sent = drawn if config.source.resident else self.chunk
        self.eval_batch_size = eval_batch_size(self.config, len(where.devices))
        eval_batch = abstract_eval_batch(config.view, self.eval_batch_size, labelled)
        self.eval_batch = sharding.place_batch(self._mesh, eval_batch)

    @property
    def variables(self) -> Any:
        """Returns the student's variables, as the evaluation step takes them."""
        variables = jax.eval_shape(lambda state: state.variables, self.state)
        return sharding.place(variables, sharding.rule(self._mesh, variables))

    @property
    def resident_bytes(self) -> int:
        """Counts the bytes on a chip of a split that lives on every device: images as large as the view, and labels."""
        source, view = self.config.source, self.config.view
        images = source.num_train_examples if source.resident else 0
        return images * (view.image_size**2 * view.channels + 4) * self._where.devices_per_chip

    def train(self) -> tuple[Cost, str]:
        """Compiles the train step, whose images come from the host; returns its cost and text."""
        args = ((self.state,), self.teacher, None, self.chunk)
        return compile_step(self.computation.train_chunk, args, self._where, self.resident_bytes)

    def evaluation(self, held_bytes: int) -> Cost:
        """Compiles the evaluation step and returns its cost."""
        args = (self.variables, self.teacher, self.eval_batch)
        return compile_step(self.computation.eval_step, args, self._where, held_bytes + self.resident_bytes)[0]


def _stage(name: str, config: Config, where: chips.Slice, with_evaluation: bool) -> tuple[Stage, str]:
    blueprint = Blueprint(config, where)
    train, text = blueprint.train()
    state, teacher, variables, sent = (
        _bytes_a_chip(tree, where) for tree in (blueprint.state, blueprint.teacher, blueprint.variables, blueprint.sent)
    )
    held, resident, constant = max(0, state - variables), blueprint.resident_bytes, state + teacher
    known, parts = {config.batch_size // where.num_chips: train}, _parts(config, where)
    stage = Stage(
        name=name,
        num_chips=where.num_chips,
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        train=train,
        evaluation=blueprint.evaluation(held) if with_evaluation else None,
        eval_batch_size=blueprint.eval_batch_size,
        host_bytes_per_step=sent,
        constant_bytes=constant,
        checkpoint_bytes=sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(blueprint.state)),
        kept_checkpoints=config.keep_latest + (config.keep_best if config.evaluated_on.validation else 0),
        resident_bytes=resident,
        held_bytes=held,
        largest_batch=largest_batch(known, constant, where, parts, resident),
        notes=tuple(_notes(config, blueprint, where)),
        warnings=tuple(warnings_of(config, where, train)),
    )
    return stage, text


def warnings_of(config: Config, where: chips.Slice, train: Cost) -> Iterator[str]:
    """Names the settings of a run that make no sense, though it would run."""
    steps, warmup, size = config.total_steps, config.optimizer.warmup_steps, config.batch_size
    examples, per_device = config.source.num_train_examples, size // config.accumulate_steps // len(where.devices)
    if 2 * warmup >= steps:
        yield f"optimizer.warmup_steps={warmup:,} is half of the run's {steps:,} steps or more"
    distilled = config.teacher.path or config.teacher.config
    if distilled and config.total_epochs >= 100 and steps < _PATIENT_STEPS:
        yield f"total_epochs={config.total_epochs:,.0f} of {examples:,} images are only {steps:,} steps of {size:,}"
    if size > examples:
        yield f"batch_size={size:,} is more than the {examples:,} images: a batch has some of them twice"
    if where.platform == "tpu" and per_device % 8:
        yield f"{per_device} images a device and part: a TPU pads that to {-(-per_device // 8) * 8}"
    if config.eval_every_steps > steps:
        yield f"eval_every_steps={config.eval_every_steps:,} evaluates only at the end, after {steps:,} steps"
    seconds = train.roofline_seconds or math.inf
    interval = config.checkpoint_every_steps * seconds
    if config.steps_per_dispatch * seconds < _LAUNCH_SECONDS:
        yield (
            f"a step takes {1e6 * seconds:.2g} us at the roofline, less than the host takes to launch it: set "
            f"steps_per_dispatch (now {config.steps_per_dispatch})"
        )
    elif interval < _SAVE_SECONDS and steps > config.checkpoint_every_steps:
        yield f"checkpoint_every_steps={config.checkpoint_every_steps:,} saves every {interval:.2g} s at the roofline"
    if 0 < config.grace_seconds < config.steps_per_dispatch * (train.roofline_seconds or 0):
        yield (
            f"steps_per_dispatch={config.steps_per_dispatch} takes longer than grace_seconds={config.grace_seconds:g}: "
            "a signal leaves no time to save"
        )
    if rest := steps % config.steps_per_dispatch:
        yield (
            f"total_steps={steps:,} is no multiple of steps_per_dispatch={config.steps_per_dispatch}: the last {rest} "
            "steps are another program, which is compiled at the end of the run"
        )
    yield from (f"the loop {name} was counted once: how often it runs is not known" for name in train.unknown_loops)


def _notes(config: Config, blueprint: Blueprint, where: chips.Slice) -> Iterator[str]:
    """Says what the plan assumes about what is not here."""
    if config.teacher.config is None:
        for path, network in zip(config.teacher.paths, blueprint.networks, strict=False):
            if pathlib.Path(path).expanduser().exists():
                continue
            model, size = network.identity, network.card.image_size
            what = f"bit {model['depth']}x{model['width']:g}" if model["name"] == "bit" else model["name"]
            yield f"teacher {path} is not here: the plan assumes {what} of {config.num_classes} classes at {size} px"
    if config.source.resident:
        yield (
            f"source.resident: images are taken to be {config.view.image_size} px a side, as the view; FLOPs, traffic "
            "and temporaries are those of a step whose images the host sends"
        )
    if where.platform == "gpu":
        yield "nothing ran on a GPU: the HBM traffic that the L2 cache saves and cuDNN's workspaces are not known"
    if config != blueprint.config:
        yield "config.compress cuts or factors kernels by their values: the plan has them as large as before"


def _bytes_a_chip(tree: Any, where: chips.Slice) -> int:
    parts = ((x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(tree))
    return sum(math.prod(shape) * size for shape, size in parts) * where.devices_per_chip

"""What a run takes, before there is a machine for it: its own steps, compiled for devices that are not there.

Sizes and times are those of one chip and one optimiser step, unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
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
from big_distill.resolve import needs_labels
from big_distill.training.evaluation import eval_batch_size
from big_distill.training.setup import before_reshaping, build

_PATIENT_STEPS = 5_000  # fewer are few for a distillation; the shortest run of the paper's Table 4 has 6,468
_SAVE_SECONDS = 30.0
_MAX_IMAGES = 1 << 20  # a chip: more than any holds, and few enough for 32-bit indices on all of them
_LAUNCH_SECONDS = 2e-4  # of the order of what a dispatch takes the host; not measured beside a TPU


@dataclasses.dataclass(frozen=True)
class Stage:
    """One run of a plan: the student's own, or one that is trained for it before.

    name: 'student', or the sub-directory where it is trained: teacher, init, teacher/teacher.
    batch_size: of all chips together.
    train, evaluation: their steps; evaluation is None if it was not asked for.
    host_bytes_per_step: what a chip is sent.
    constant_bytes: of state and teacher on a chip, whatever the batch.
    resident_bytes: of a data set that lives on every device, on a chip.
    checkpoint_bytes: of one checkpoint.
    kept_checkpoints: at most so many at the end.
    held_bytes: of the state that stays on the chip during an evaluation without being its argument.
    largest_batch: of a chip, that fits; an estimate.
    notes: what had to be assumed.
    warnings: what makes no sense.
    """

    name: str
    num_chips: int
    batch_size: int
    total_steps: int
    train: Cost
    evaluation: Cost | None
    eval_batch_size: int
    host_bytes_per_step: int
    constant_bytes: int
    checkpoint_bytes: int
    kept_checkpoints: int
    resident_bytes: int
    held_bytes: int
    largest_batch: int | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def batch_per_chip(self) -> int:
        """Images a chip and step."""
        return self.batch_size // self.num_chips

    @property
    def evaluation_bytes(self) -> int | None:
        """Of the chip's memory during an evaluation; None if it was not asked for, or refused."""
        if self.evaluation is None or self.evaluation.refused:
            return None
        return self.evaluation.total_bytes + self.held_bytes + self.resident_bytes

    @property
    def fits(self) -> bool:
        """Both steps do."""
        return self.train.fits and (self.evaluation is None or self.evaluation.fits)

    @property
    def images_per_second(self) -> float | None:
        """Of all chips together, at most."""
        seconds = self.train.roofline_seconds
        return self.batch_size / seconds if seconds else None

    @property
    def total_hours(self) -> float | None:
        """Of all training steps, at least; evaluations are not in it."""
        seconds = self.train.roofline_seconds
        return self.total_steps * seconds / 3600 if seconds else None

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready; the train step's figures at the top."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del own["train"], own["evaluation"]
        derived = ("batch_per_chip", "images_per_second", "total_hours")
        evaluation = self.evaluation.to_json() if self.evaluation else None
        return {
            **self.train.to_json(),
            **own,
            **{name: getattr(self, name) for name in derived},
            "fits": self.fits,
            "evaluation": evaluation,
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config on a slice.

    stages: in the order in which they are trained, the student's last.
    hlo: the text of the student's train step.
    batches: that step with other batches, by images a chip.
    slices: that step on other slices, with as many images a chip.
    """

    config: str
    slice: chips.Slice
    stages: tuple[Stage, ...]
    hlo: str
    batches: Mapping[int, Cost] = dataclasses.field(default_factory=dict)
    slices: tuple[tuple[chips.Slice, Cost], ...] = ()

    @property
    def student(self) -> Stage:
        """The run that the config is of."""
        return self.stages[-1]

    @property
    def total_hours(self) -> float | None:
        """Of all stages' steps."""
        hours = [stage.total_hours for stage in self.stages]
        return sum(filter(None, hours)) if None not in hours else None

    def cost(self, price: float) -> float | None:
        """Of all stages, at so much for a chip and hour."""
        return None if self.total_hours is None else self.total_hours * self.slice.num_chips * price

    def to_json(self, price: float | None) -> dict[str, Any]:
        """The student's figures at the top, and everything else; sizes in bytes."""
        return {
            **self.student.to_json(),
            "config": self.config,
            "topology": self.slice.name,
            "stages": [stage.to_json() for stage in self.stages],
            "total_hours": self.total_hours,
            "cost": None if price is None else self.cost(price),
            "batches": {str(batch): cost.to_json() for batch, cost in self.batches.items()},
            "weak_scaling": {
                where.name: {"num_chips": where.num_chips, **cost.to_json(), "growth": growth(self.student.train, cost)}
                for where, cost in self.slices
            },
        }


def plan(name: str, config: Config, where: chips.Slice, with_evaluation: bool = True) -> Plan:
    """Compiles the steps of a config and of all that is trained for it.

    Args:
      name: of the config, for the table.
      config: resolved for these devices.
      where: the devices.
      with_evaluation: whether to compile the evaluation steps, too.

    Raises:
      ConfigError: a teacher of which nothing is known.
    """
    found, text = [], ""
    for stage, own in stages(config):
        planned, text = _stage(stage, own, where, with_evaluation)
        found.append(planned)
    return Plan(name, where, tuple(found), text)


def check_batches(config: Config, where: chips.Slice, batches: Sequence[int]) -> None:
    """Raises ConfigError if a number of images a chip cannot be split, or is more than any chip holds."""
    parts = _parts(config, where)
    for batch in batches:
        if batch > _MAX_IMAGES:
            raise ConfigError(f"--batches: {batch} images a chip; expected at most {_MAX_IMAGES:,}")
        if batch < 1 or batch % parts:
            raise ConfigError(f"--batches: {batch} images a chip cannot be split in {parts} (cores, accumulate_steps)")


def check_slices(where: chips.Slice, others: Sequence[chips.Slice]) -> None:
    """Raises ConfigError if a slice is not of the same chips."""
    for other in others:
        if other.kind != where.kind:
            raise ConfigError(
                f"--weak_scaling={other.name}: expected slices of {where.kind}, as --topology={where.name}"
            )


def with_batches(one: Plan, config: Config, batches: Sequence[int]) -> Plan:
    """The plan of a config, and the student's train step with other numbers of images a chip."""
    student, costs = one.student, {}
    for batch in batches:
        own = dataclasses.replace(config, batch_size=batch * one.slice.num_chips)
        costs[batch] = student.train if own == config else Blueprint(own, one.slice).train()[0]
    known = {**costs, student.batch_per_chip: student.train}
    parts, resident = _parts(config, one.slice), student.resident_bytes
    largest = largest_batch(known, student.constant_bytes, one.slice, parts, resident)
    student = dataclasses.replace(student, largest_batch=largest)
    return dataclasses.replace(one, stages=(*one.stages[:-1], student), batches=costs)


def with_slices(one: Plan, config: Config, slices: Sequence[chips.Slice]) -> Plan:
    """The plan of a config, and the student's train step on other slices with as many images a chip: weak scaling."""
    costs = []
    for where in slices:
        own = dataclasses.replace(config, batch_size=one.student.batch_per_chip * where.num_chips)
        costs.append((where, Blueprint(own, where).train()[0]))
    return dataclasses.replace(one, slices=tuple(costs))


def growth(before: Cost, after: Cost) -> dict[str, float] | None:
    """By how many percent a chip's part of a step grew; None if one of them was refused."""
    if before.refused or after.refused:
        return None
    figures = {name: (getattr(before, name), getattr(after, name)) for name in ("flops", "hbm_bytes", "temp_bytes")}
    for kind in {**before.collective_bytes, **after.collective_bytes}:
        figures[kind] = before.collective_bytes.get(kind, 0), after.collective_bytes.get(kind, 0)
    return {name: 100 * (new / old - 1) for name, (old, new) in figures.items() if old}


def _parts(config: Config, where: chips.Slice) -> int:
    """What a chip's batch has to be a multiple of."""
    return where.devices_per_chip * config.accumulate_steps


def stages(config: Config, prefix: str = "", shares_teacher: bool = False) -> list[tuple[str, Config]]:
    """A config and those in it, in the order in which they are trained, by the sub-directory where that is.

    A first stage that has the run's own teacher `shares_teacher`: its config is in it, but no stage of its own.
    """
    nested, first = config.teacher.config, config.init_config
    found = stages(nested, f"{prefix}teacher/") if nested is not None and not shares_teacher else []
    if first is not None:
        shares = first.teacher.path == OWN_TEACHER
        if shares:
            first = dataclasses.replace(first, teacher=dataclasses.replace(first.teacher, path=None, config=nested))
        found += stages(first, f"{prefix}init/", shares)
    return [*found, (prefix.rstrip("/") or "student", config)]


class Blueprint:
    """A run's steps and their arguments on a slice, as shapes and dtypes."""

    def __init__(self, config: Config, where: chips.Slice):
        self._where = where
        self._mesh = sharding.make_mesh(config.mesh.fsdp, where.devices)
        self.config = before_reshaping(config)
        self.computation = build(self.config, weights.architecture_of(self.config, (), None), self._mesh)
        self.networks = teachers.announced(self.config)
        self.teacher = teachers.abstract(self.networks, self.config, self._mesh)
        self.state = self.computation.abstract_state
        # Unlabelled folders, and your own sources without labels, are taken to have some: four bytes an image.
        labelled = not config.eval_source.name or needs_labels(config.objective)
        self.chunk = sharding.place_batch(self._mesh, abstract_chunk(self.config, labelled), axis=1)
        drawn = sharding.place_batch(self._mesh, abstract_draws(self.config), axis=1)
        self.sent = drawn if config.source.resident else self.chunk
        self.eval_batch_size = eval_batch_size(self.config, len(where.devices))
        eval_batch = abstract_eval_batch(self.config, self.eval_batch_size, labelled)
        self.eval_batch = sharding.place_batch(self._mesh, eval_batch)

    @property
    def variables(self) -> Any:
        """Of the student, as the evaluation step takes them."""
        variables = jax.eval_shape(lambda state: state.variables, self.state)
        return sharding.place(variables, sharding.rule(self._mesh, variables))

    @property
    def resident_bytes(self) -> int:
        """Of a training split that lives on every device, on a chip: of images as large as the view, and labels."""
        source, view = self.config.source, self.config.view
        images = source.num_train_examples if source.resident else 0
        return images * (view.image_size**2 * view.channels + 4) * self._where.devices_per_chip

    def train(self) -> tuple[Cost, str]:
        """The train step's cost and text; its images come from the host."""
        args = (self.state, self.teacher, None, self.chunk)
        return compile_step(self.computation.train_chunk, args, self._where, self.resident_bytes)

    def evaluation(self, held_bytes: int) -> Cost:
        """The evaluation step's cost."""
        args = (self.variables, self.teacher, self.eval_batch)
        return compile_step(self.computation.eval_step, args, self._where, held_bytes + self.resident_bytes)[0]


def _stage(name: str, config: Config, where: chips.Slice, with_evaluation: bool) -> tuple[Stage, str]:
    compiled = Blueprint(config, where)
    train, text = compiled.train()
    state_a_chip = _bytes_a_chip(compiled.state, where)
    constant = state_a_chip + _bytes_a_chip(compiled.teacher, where)
    held = max(0, state_a_chip - _bytes_a_chip(compiled.variables, where))
    evaluation = compiled.evaluation(held) if with_evaluation else None
    resident = compiled.resident_bytes
    largest = largest_batch(
        {config.batch_size // where.num_chips: train}, constant, where, _parts(config, where), resident
    )
    stage = Stage(
        name=name,
        num_chips=where.num_chips,
        batch_size=config.batch_size,
        total_steps=config.total_steps,
        train=train,
        evaluation=evaluation,
        eval_batch_size=compiled.eval_batch_size,
        host_bytes_per_step=_bytes_a_chip(compiled.sent, where),
        constant_bytes=constant,
        checkpoint_bytes=_bytes_of(compiled.state),
        kept_checkpoints=config.keep_latest + (config.keep_best if config.evaluated_on.validation else 0),
        resident_bytes=resident,
        held_bytes=held,
        largest_batch=largest,
        notes=tuple(_notes(config, compiled, where)),
        warnings=tuple(warnings_of(config, where, train)),
    )
    return stage, text


def warnings_of(config: Config, where: chips.Slice, train: Cost) -> list[str]:
    """What of a run makes no sense, though it would run."""
    found = []
    steps, warmup, size = config.total_steps, config.optimizer.warmup_steps, config.batch_size
    examples, per_device = config.source.num_train_examples, size // config.accumulate_steps // len(where.devices)
    if 2 * warmup >= steps:
        found.append(f"optimizer.warmup_steps={warmup:,} is half of the run's {steps:,} steps or more")
    distilled = config.teacher.path or config.teacher.config
    if distilled and config.total_epochs >= 100 and steps < _PATIENT_STEPS:
        found.append(
            f"total_epochs={config.total_epochs:,.0f} of {examples:,} images are only {steps:,} steps of {size:,}"
        )
    if size > examples:
        found.append(f"batch_size={size:,} is more than the {examples:,} images: a batch has some of them twice")
    if where.platform == "tpu" and per_device % 8:
        found.append(f"{per_device} images a device and part: a TPU pads that to {-(-per_device // 8) * 8}")
    if config.eval_every_steps > steps:
        found.append(f"eval_every_steps={config.eval_every_steps:,}: evaluated only at the end, after {steps:,} steps")
    seconds = train.roofline_seconds or math.inf
    interval = config.checkpoint_every_steps * seconds
    if config.steps_per_dispatch * seconds < _LAUNCH_SECONDS:
        found.append(
            f"a step takes {1e6 * seconds:.2g} us at the roofline, less than the host takes to launch it: set "
            f"steps_per_dispatch (now {config.steps_per_dispatch})"
        )
    elif interval < _SAVE_SECONDS and steps > config.checkpoint_every_steps:
        found.append(
            f"checkpoint_every_steps={config.checkpoint_every_steps:,}: saves every {interval:.2g} s at the roofline"
        )
    if 0 < config.grace_seconds < config.steps_per_dispatch * (train.roofline_seconds or 0):
        found.append(
            f"steps_per_dispatch={config.steps_per_dispatch} takes longer than grace_seconds={config.grace_seconds:g}: "
            "a signal finds no time to save"
        )
    if rest := steps % config.steps_per_dispatch:
        found.append(
            f"total_steps={steps:,} is no multiple of steps_per_dispatch={config.steps_per_dispatch}: the last {rest} "
            "steps are another program, which is compiled at the end of the run"
        )
    found += [f"the loop {name} was counted once: how often it runs is not known" for name in train.unknown_loops]
    return found


def _notes(config: Config, compiled: Blueprint, where: chips.Slice) -> list[str]:
    """What had to be assumed about what is not here."""
    notes = []
    if config.teacher.config is None:
        for path, network in zip(config.teacher.paths, compiled.networks, strict=False):
            if pathlib.Path(path).expanduser().exists():
                continue
            model, size = network.model, network.card.image_size
            what = f"{model.name} {model.depth}x{model.width:g}" if model.name == "bit" else model.name
            notes.append(f"teacher {path} is not here: taken for {what} of {config.num_classes} classes at {size} px")
    if config.source.resident:
        notes.append(
            f"source.resident: images are taken to be {config.view.image_size} px a side, as the view; FLOPs, traffic "
            "and temporaries are those of a step whose images the host sends"
        )
    if where.platform == "gpu":
        notes.append(
            "not run on a GPU: what the L2 cache saves of the HBM traffic is not known, nor are cuDNN's workspaces"
        )
    if config != compiled.config:
        notes.append("config.compress cuts or factors kernels by their values: planned as large as before")
    return notes


def _bytes_of(tree: Any) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _bytes_a_chip(tree: Any, where: chips.Slice) -> int:
    parts = ((x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(tree))
    return sum(math.prod(shape) * size for shape, size in parts) * where.devices_per_chip

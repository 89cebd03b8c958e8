"""Holds a plan: what a config takes on a slice, stage by stage.

Sizes and times are those of one chip and one optimiser step, unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from big_distill.planning import chips
from big_distill.planning.costs import Cost


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describes one run of a plan: the student's own, or one that is trained for it before.

    name: 'student', or the sub-directory where it is trained: teacher, init, teacher/teacher.
    batch_size: images of all chips together.
    train, evaluation: costs of its steps; evaluation is None if it was not asked for.
    host_bytes_per_step: bytes that the host sends to a chip.
    constant_bytes: bytes of state and teacher on a chip, the same for every batch.
    checkpoint_bytes: size of one checkpoint.
    kept_checkpoints: largest number of checkpoints at the end.
    resident_bytes: bytes on a chip of a data set that lives on every device.
    held_bytes: bytes of the state that stay on the chip during an evaluation and are not its arguments.
    largest_batch: estimate of the most images a chip that fit.
    notes: assumptions.
    warnings: settings that make no sense, though they would run.
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
        """Returns the number of images a chip and step."""
        return self.batch_size // self.num_chips

    @property
    def evaluation_bytes(self) -> int | None:
        """Adds up the memory of a chip that an evaluation takes; None if it was not asked for, or refused."""
        if self.evaluation is None or self.evaluation.refused:
            return None
        return self.evaluation.total_bytes + self.held_bytes + self.resident_bytes

    @property
    def fits(self) -> bool:
        """Returns True if both steps fit."""
        return self.train.fits and (self.evaluation is None or self.evaluation.fits)

    @property
    def images_per_second(self) -> float | None:
        """Returns the highest possible throughput of all chips together; None if it is not known."""
        seconds = self.train.roofline_seconds
        return self.batch_size / seconds if seconds else None

    @property
    def total_hours(self) -> float | None:
        """Returns the shortest possible time of all training steps, without evaluations; None if it is not known."""
        seconds = self.train.roofline_seconds
        return self.total_steps * seconds / 3600 if seconds else None

    def to_json(self) -> dict[str, Any]:
        """Returns everything, JSON-ready, with the train step's figures at the top."""
        fields = {name: value for name, value in vars(self).items() if name not in ("train", "evaluation")}
        derived = {name: getattr(self, name) for name in ("batch_per_chip", "images_per_second", "total_hours", "fits")}
        evaluation = self.evaluation.to_json() if self.evaluation else None
        return {**self.train.to_json(), **fields, **derived, "evaluation": evaluation}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Describes a config on a slice.

    stages: runs in the order of training, the student's last.
    hlo: text of the student's train step.
    batches: costs of that step with other batches, by images a chip.
    slices: costs of that step on other slices, with as many images a chip.
    """

    config: str
    slice: chips.Slice
    stages: tuple[Stage, ...]
    hlo: str
    batches: Mapping[int, Cost] = dataclasses.field(default_factory=dict)
    slices: tuple[tuple[chips.Slice, Cost], ...] = ()

    @property
    def student(self) -> Stage:
        """Returns the stage that trains the config's own student."""
        return self.stages[-1]

    @property
    def total_hours(self) -> float | None:
        """Adds up the time of all stages' steps; None if that of one is not known."""
        hours = [stage.total_hours for stage in self.stages]
        return sum(filter(None, hours)) if None not in hours else None

    def cost(self, price: float) -> float | None:
        """Computes the price of all stages, if a chip costs `price` an hour; None if the time is not known."""
        return None if self.total_hours is None else self.total_hours * self.slice.num_chips * price

    def to_json(self, price: float | None) -> dict[str, Any]:
        """Returns the student's figures at the top, and everything else; sizes are in bytes."""
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


def growth(before: Cost, after: Cost) -> dict[str, float] | None:
    """Computes by how many percent a chip's part of a step grew; None if one of the two was refused."""
    if before.refused or after.refused:
        return None
    figures = {name: (getattr(before, name), getattr(after, name)) for name in ("flops", "hbm_bytes", "temp_bytes")}
    for kind in {**before.collective_bytes, **after.collective_bytes}:
        figures[kind] = before.collective_bytes.get(kind, 0), after.collective_bytes.get(kind, 0)
    return {name: 100 * (new / old - 1) for name, (old, new) in figures.items() if old}

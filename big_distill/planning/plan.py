"""A plan: what a config takes on a slice, stage by stage.

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
    """One run of a plan: the student's own, or one that is trained for it before.

    name: 'student', or the sub-directory where it is trained: teacher, init, teacher/teacher.
    batch_size: of all chips together.
    train, evaluation: their steps; evaluation is None if it was not asked for.
    host_bytes_per_step: sent to a chip.
    constant_bytes: of state and teacher on a chip, whatever the batch.
    checkpoint_bytes: of one checkpoint.
    kept_checkpoints: at most so many at the end.
    resident_bytes: of a data set that lives on every device, on a chip.
    held_bytes: of the state that stays on the chip during an evaluation without being its argument.
    largest_batch: of a chip, that fits; an estimate.
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
        """Images a chip and step."""
        return self.batch_size // self.num_chips

    @property
    def evaluation_bytes(self) -> int | None:
        """Memory that an evaluation takes of a chip; None if it was not asked for, or refused."""
        if self.evaluation is None or self.evaluation.refused:
            return None
        return self.evaluation.total_bytes + self.held_bytes + self.resident_bytes

    @property
    def fits(self) -> bool:
        """Whether both steps fit."""
        return self.train.fits and (self.evaluation is None or self.evaluation.fits)

    @property
    def images_per_second(self) -> float | None:
        """The throughput of all chips together, at most."""
        seconds = self.train.roofline_seconds
        return self.batch_size / seconds if seconds else None

    @property
    def total_hours(self) -> float | None:
        """The time of all training steps, at least; evaluations are not in it."""
        seconds = self.train.roofline_seconds
        return self.total_steps * seconds / 3600 if seconds else None

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready; the train step's figures at the top."""
        fields = {name: value for name, value in vars(self).items() if name not in ("train", "evaluation")}
        derived = {name: getattr(self, name) for name in ("batch_per_chip", "images_per_second", "total_hours", "fits")}
        evaluation = self.evaluation.to_json() if self.evaluation else None
        return {**self.train.to_json(), **fields, **derived, "evaluation": evaluation}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A config on a slice.

    stages: in the order in which they are trained, the student's last.
    hlo: the text of the student's train step.
    batches, slices: that step with other batches, by images a chip, and on other slices, with as many images a chip.
    """

    config: str
    slice: chips.Slice
    stages: tuple[Stage, ...]
    hlo: str
    batches: Mapping[int, Cost] = dataclasses.field(default_factory=dict)
    slices: tuple[tuple[chips.Slice, Cost], ...] = ()

    @property
    def student(self) -> Stage:
        """The stage that trains the config's own student."""
        return self.stages[-1]

    @property
    def total_hours(self) -> float | None:
        """The time of all stages' steps."""
        hours = [stage.total_hours for stage in self.stages]
        return sum(filter(None, hours)) if None not in hours else None

    def cost(self, price: float) -> float | None:
        """The price of all stages, at so much for a chip and hour."""
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


def growth(before: Cost, after: Cost) -> dict[str, float] | None:
    """By how many percent a chip's part of a step grew; None if one of them was refused."""
    if before.refused or after.refused:
        return None
    figures = {name: (getattr(before, name), getattr(after, name)) for name in ("flops", "hbm_bytes", "temp_bytes")}
    for kind in {**before.collective_bytes, **after.collective_bytes}:
        figures[kind] = before.collective_bytes.get(kind, 0), after.collective_bytes.get(kind, 0)
    return {name: 100 * (new / old - 1) for name, (old, new) in figures.items() if old}

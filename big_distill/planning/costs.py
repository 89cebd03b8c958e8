"""Measures one compiled step on a chip: its memory, arithmetic and traffic, and the shortest time it can take."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax

from big_distill.planning import chips, hlo


@dataclasses.dataclass(frozen=True)
class Cost:
    """Describes what one compiled step takes of a chip.

    fits: True if the compiler finds room for the step, and the step needs no more memory than it can have.
    argument_bytes, temp_bytes, output_bytes, code_bytes: sizes in the chip's memory; outputs that take an argument's
      place do not count.
    flops: the compiler's count, times the trips of loops; products alone where it does not count (for GPUs).
    int8_flops: the part of `flops` that is in integers.
    hbm_bytes: bytes to and from the chip's memory, see `hlo`.
    collective_bytes: bytes that a chip's devices have in collectives, by kind.
    sent_bytes: bytes that a chip sends to others in collectives; rings pass all its cores, and between those it costs
      nothing.
    seconds: time at the chip's peaks, by arithmetic, memory and interconnect; empty for a CPU.
    unknown_loops: loops that were counted once.
    refused: the compiler's words if it found no room; the figures then mean nothing.
    """

    fits: bool
    argument_bytes: int = 0
    temp_bytes: int = 0
    output_bytes: int = 0
    code_bytes: int = 0
    flops: float = 0
    int8_flops: float = 0
    hbm_bytes: int = 0
    collective_bytes: dict[str, int] = dataclasses.field(default_factory=dict)
    sent_bytes: float = 0
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    unknown_loops: tuple[str, ...] = ()
    compile_seconds: float = 0
    refused: str | None = None

    @property
    def total_bytes(self) -> int:
        """Adds up the memory of the chip that the step takes while it runs."""
        return self.argument_bytes + self.temp_bytes + self.output_bytes + self.code_bytes

    @property
    def bound_by(self) -> str | None:
        """Names the one of arithmetic, memory and interconnect that takes longest."""
        return max(self.seconds, key=lambda kind: self.seconds[kind]) if self.seconds else None

    @property
    def roofline_seconds(self) -> float | None:
        """Returns the shortest time that the step can take; None for a CPU."""
        return max(self.seconds.values()) if self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """Returns everything, JSON-ready; the figures of a step that was refused are None."""
        derived = ("total_bytes", "roofline_seconds", "bound_by")
        figures = dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}
        known = ("fits", "compile_seconds", "refused")
        return {name: value if self.refused is None or name in known else None for name, value in figures.items()}


def compile_step(step: Any, args: Any, where: chips.Slice, held_bytes: int = 0) -> tuple[Cost, str]:
    """Compiles a jitted step with abstract arguments; returns its cost and text. `held_bytes` of the chip are taken."""
    start = time.monotonic()
    try:
        compiled = step.lower(*args).compile(compiler_options=dict(where.compiler_options) or None)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = str(error).strip().partition("\n")[0]
        return Cost(fits=False, refused=refused, compile_seconds=round(time.monotonic() - start, 2)), ""
    seconds, text = time.monotonic() - start, compiled.as_text()
    memory, module, cores = compiled.memory_analysis(), hlo.Module(text), where.devices_per_chip
    repeated, once = module.multiplications(), module.multiplications(once=True)
    loops = sum(repeated.values()) / sum(once.values()) if once else 1.0
    analysis = compiled.cost_analysis()
    flops = cores * (loops * analysis["flops"] if analysis else 2.0 * sum(repeated.values()))
    integers = sum(count for dtype, count in repeated.items() if dtype in ("s8", "u8"))
    cost = Cost(
        fits=True,
        argument_bytes=memory.argument_size_in_bytes * cores,
        temp_bytes=memory.temp_size_in_bytes * cores,
        output_bytes=(memory.output_size_in_bytes - memory.alias_size_in_bytes) * cores,
        code_bytes=memory.generated_code_size_in_bytes * cores,
        flops=flops,
        int8_flops=flops * integers / sum(repeated.values()) if repeated else 0.0,
        hbm_bytes=module.hbm_bytes * cores,
        collective_bytes={kind: size * cores for kind, size in module.collective_bytes.items()},
        sent_bytes=module.sent_bytes,
        unknown_loops=module.unknown_loops,
        compile_seconds=round(seconds, 2),
    )
    room = where.chip.memory or math.inf
    return dataclasses.replace(cost, fits=cost.total_bytes + held_bytes <= room, seconds=roofline(cost, where)), text


def roofline(cost: Cost, where: chips.Slice) -> dict[str, float]:
    """Computes the seconds of arithmetic, memory and interconnect at a chip's peaks; {} for a CPU."""
    chip, num_chips = where.chip, where.num_chips
    if not chip.flops:
        return {}
    seconds = {
        "arithmetic": (cost.flops - cost.int8_flops) / chip.flops + cost.int8_flops / chip.int8_ops,
        "memory": cost.hbm_bytes / chip.bandwidth,
    }
    if chip.ici and num_chips > 1:
        seconds["interconnect"] = cost.sent_bytes / chip.ici
    return seconds


def largest_batch(
    costs: Mapping[int, Cost], constant_bytes: int, where: chips.Slice, multiple: int = 1, held_bytes: int = 0
) -> int | None:
    """Estimates the most images a chip for which a train step fits; None for a CPU, or if nothing was compiled.

    `costs` are given by images a chip. The estimate follows the line through the two largest compiled steps, and stays
    below every step that was refused. If there is only one, or the larger needs no more, it assumes that all but
    `constant_bytes` (state, teacher) grows with the batch. It is divisible by `multiple`; `held_bytes` of the chip are
    already taken.
    """
    points = sorted((batch, cost.total_bytes) for batch, cost in costs.items() if not cost.refused)
    if not where.chip.memory or not points:
        return None
    batch, needed = points[-1]
    slope = (needed - points[-2][1]) / (batch - points[-2][0]) if len(points) > 1 else 0
    if slope <= 0:
        slope = max(1.0, (needed - constant_bytes) / batch)
    images = int(batch + (where.chip.memory - held_bytes - needed) / slope)
    images = min([images, *(refused - 1 for refused, cost in costs.items() if cost.refused)])
    return max(0, images // multiple * multiple)

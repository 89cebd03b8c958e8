"""The cost of one compiled step on a chip: memory, arithmetic, traffic, and the time below which it cannot come."""

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
    """One compiled step.

    fits: whether the compiler finds room for it, and it needs no more than a step can have.
    argument_bytes, temp_bytes, output_bytes, code_bytes: in the chip's memory; of the outputs those that do not take an
      argument's place.
    flops: as the compiler counts them, times the trips of loops, or of products alone where it does not count (for
      GPUs); int8_flops are those in integers, of the same sum.
    hbm_bytes: to and from the chip's memory, see `hlo`.
    collective_bytes: what a chip's devices have in collectives, by kind.
    sent_bytes: what a chip sends to others in them, in rings that pass all its cores: between those it costs nothing.
    seconds: at the chip's peaks: arithmetic, memory and interconnect; empty for a CPU.
    unknown_loops: loops that were counted once.
    refused: the compiler's words, if it found no room; then the figures mean nothing.
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
        """Memory that the step takes of the chip while it runs."""
        return self.argument_bytes + self.temp_bytes + self.output_bytes + self.code_bytes

    @property
    def bound_by(self) -> str | None:
        """The one of arithmetic, memory and interconnect that takes longest."""
        return max(self.seconds, key=lambda kind: self.seconds[kind]) if self.seconds else None

    @property
    def roofline_seconds(self) -> float | None:
        """The time below which the step cannot come."""
        return max(self.seconds.values()) if self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready; None for the figures of a step that was refused."""
        derived = ("total_bytes", "roofline_seconds", "bound_by")
        figures = dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}
        known = ("fits", "compile_seconds", "refused")
        return {name: value if self.refused is None or name in known else None for name, value in figures.items()}


def compile_step(step: Any, args: Any, where: chips.Slice, held_bytes: int = 0) -> tuple[Cost, str]:
    """The cost of a jitted step with abstract arguments, and its text; `held_bytes` of the chip are taken."""
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
    """Seconds of arithmetic, memory and interconnect at a chip's peaks; nothing for a CPU."""
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
    """The largest number of images a chip, of which a train step fits; None for a CPU, or if nothing was compiled.

    It is an estimate. The line through the two largest of the compiled steps, given by images a chip, is followed, but
    not as far as one that was refused; of a single one, or where the larger needs no more, all but `constant_bytes`
    (state, teacher) is taken to grow with the batch. The batch is a `multiple`; `held_bytes` of the chip are taken.
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

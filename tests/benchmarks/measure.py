"""Measures ways in turns, and holds the rows of the benchmark's table."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

HEADER = (
    f"{'section':8}{'case':32}{'way':26}{'median':>10} {'unit':10}{'min':>10}{'max':>10}{'ratio':>7}{'CPU ratio':>11}"
)
Way = Callable[[], int]
"""Does some work and returns its number of images."""


@dataclasses.dataclass(frozen=True)
class Effort:
    """Says how long to measure (rounds, seconds of a way in a round) and what (tiny networks; cases, ways of steps)."""

    repeats: int
    seconds: float
    tiny: bool
    cases: tuple[str, ...]
    ways: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds one line of the table. Each field is a number a round.

    values: figures in `unit`.
    ratios: values divided by those of the first way of the block; ones for the first way itself.
    cpu_ms: milliseconds of processor time an image, over all cores.
    cpu_ratios: images made in the processor time in which the first way makes one.
    """

    section: str
    case: str
    way: str
    unit: str
    values: tuple[float, ...]
    ratios: tuple[float, ...] = ()
    cpu_ms: tuple[float, ...] = ()
    cpu_ratios: tuple[float, ...] = ()

    def line(self) -> str:
        middle, least, most = (f(self.values) for f in (statistics.median, min, max))
        ratio, cpu_ratio = (f"{statistics.median(r):.2f}" if r else "" for r in (self.ratios, self.cpu_ratios))
        figures = f"{middle:>10,.4g} {self.unit:10}{least:>10,.4g}{most:>10,.4g}{ratio:>7}{cpu_ratio:>11}"
        return f"{self.section:8}{self.case:32}{self.way:26}{figures}"

    def to_json(self) -> dict[str, Any]:
        names = ("values", "ratios", "cpu_ms", "cpu_ratios")
        medians = {f"median_{n}": statistics.median(getattr(self, n)) for n in names if getattr(self, n)}
        return {**dataclasses.asdict(self), **medians}


def in_turns(section: str, case: str, ways: Mapping[str, Way], effort: Effort) -> Iterator[Row]:
    """Measures images a second of each way, after one call that is not counted; compares each way with the first."""
    for way in ways.values():
        way()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    cpu_ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(effort.repeats):
        for name, way in ways.items():
            rate, milliseconds = _rate(way, effort.seconds)
            rates[name].append(rate)
            cpu_ms[name].append(milliseconds)
    first = next(iter(ways))
    for name in ways:
        ratios = tuple(a / b for a, b in zip(rates[name], rates[first], strict=True))
        cpu_ratios = tuple(b / a for a, b in zip(cpu_ms[name], cpu_ms[first], strict=True))
        yield Row(section, case, name, "images/s", tuple(rates[name]), ratios, tuple(cpu_ms[name]), cpu_ratios)


def _rate(way: Way, seconds: float) -> tuple[float, float]:
    """Returns images a second, and milliseconds of processor time an image."""
    images, start, used = 0, time.perf_counter(), time.process_time()
    while True:
        images += way()
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return images / elapsed, max(1e3 * (time.process_time() - used) / images, 1e-9)

"""How a report says values: on the page, in its table and in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from big_distill.reporting.records import finite

_LONGEST = 1e12  # a number from here on is written with an exponent


def about(lines_of: Iterable[tuple[str, Sequence[str]]]) -> list[tuple[str, str]]:
    """Of (run, its lines): each line once, after the names of the runs that it is about."""
    names: dict[str, list[str]] = {}
    for name, lines in lines_of:
        for line in lines:
            names.setdefault(line, []).append(name)
    more = {line: f" and {len(own) - 3} more" if len(own) > 3 else "" for line, own in names.items()}
    return [("; ".join(own[:3]) + more[line], line) for line, own in names.items()]


def state(run: dict[str, Any]) -> str:
    """finished, or how far it is."""
    if run["status"] in ("interrupted", "running") or (run["status"] == "damaged" and run["step"]):
        total = f" of {count(run['total_steps'])}" if run["total_steps"] else ""
        return f"{run['status']} at step {count(run['step'])}{total}"
    return run["status"]


def network(values: dict[str, Any] | None) -> str:
    """99.24 % (79,626 parameters)"""
    if values is None:
        return "-"
    size = "" if values["num_params"] is None else f" ({count(values['num_params'])} parameters)"
    return f"{accuracy(values)}{size}"


def accuracy(network: dict[str, Any]) -> str:
    """'99.24 %', or of a network that is not finished '99.24 % at step 5,624'."""
    if (last := network.get("last")) and network["accuracy"] is None:
        where = "" if last["split"] == "test" else f", {last['split']}"
        return f"{percent(last['accuracy'])} at step {count(last['step'])}{where}"
    return percent(network["accuracy"])


def percent(value: float | None) -> str:
    """Of a fraction; '-' for None."""
    return "-" if value is None else f"{100 * value:.2f} %"


def number(value: float | None) -> str:
    """To six digits; '-' for None."""
    return "-" if value is None else f"{value:g}"


def count(value: float | None) -> str:
    """With commas; '-' for None, and for what no float holds."""
    value = finite(value)
    return "-" if value is None else f"{value:,.0f}" if abs(value) < _LONGEST else f"{value:.3g}"


def nats(value: float | None) -> str:
    """To four decimals; '-' for None."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < _LONGEST else f"{value:.3g}"


def milliseconds(value: float) -> str:
    """To three decimals."""
    return f"{value:.3f} ms" if value < _LONGEST else f"{value:.3g} ms"


def duration(seconds: float | None) -> str:
    """20 s, 4 min 10 s, 2 h 5 min."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{count(hours)} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

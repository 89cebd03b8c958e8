"""Says the values of a report: on the page, in its table and in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from big_distill.terminal import percent


def about(lines_of: Iterable[tuple[str, Sequence[str]]]) -> list[tuple[str, str]]:
    """Says each line of several runs once, after the names of its runs. Each run is given as its name and its lines."""
    names: dict[str, list[str]] = {}
    for name, lines in lines_of:
        for line in lines:
            names.setdefault(line, []).append(name)
    more = {line: f" and {len(runs) - 3} more" if len(runs) > 3 else "" for line, runs in names.items()}
    return [("; ".join(runs[:3]) + more[line], line) for line, runs in names.items()]


def state(run: dict[str, Any]) -> str:
    """Says 'finished', or how far a run is."""
    if run["status"] in ("interrupted", "running") or (run["status"] == "damaged" and run["step"]):
        total = f" of {count(run['total_steps'])}" if run["total_steps"] else ""
        return f"{run['status']} at step {count(run['step'])}{total}"
    return run["status"]


def network(values: dict[str, Any] | None) -> str:
    """Says '99.24 % (79,626 parameters)'."""
    if values is None:
        return "-"
    size = "" if values["num_params"] is None else f" ({count(values['num_params'])} parameters)"
    return f"{accuracy(values)}{size}"


def accuracy(network: dict[str, Any]) -> str:
    """Says '99.24 %', and of a network that is not finished '99.24 % at step 5,624'."""
    if (last := network.get("last")) and network["accuracy"] is None:
        where = "" if last["split"] == "test" else f", {last['split']}"
        return f"{percent(last['accuracy'])} at step {count(last['step'])}{where}"
    return percent(network["accuracy"])


def number(value: float | None) -> str:
    """Says a number to six digits; '-' for None."""
    return "-" if value is None else f"{value:g}"


def count(value: float | None) -> str:
    """Says a whole number with commas; '-' for None."""
    return "-" if value is None else f"{value:,.0f}"


def nats(value: float | None) -> str:
    """Says a number to four decimals; '-' for None."""
    return "-" if value is None else f"{value:.4f}"


def duration(seconds: float | None) -> str:
    """Says '20 s', '4 min 10 s', '2 h 5 min'."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{count(hours)} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"

"""Writes report.md: a table of the runs."""

from __future__ import annotations

from typing import Any

from big_distill.reporting import wording
from big_distill.terminal import percent

_HEADS = ("run", "teacher", "student", "agreement", "KL, nats", "epochs", "images/s", "time")


def table(values: dict[str, Any]) -> str:
    """Writes a table with a row for each run."""
    lines = [list(_HEADS), ["---"] * len(_HEADS)]
    for run in values["runs"]:
        lines.append(
            [
                run["name"] + ("" if run["status"] == "finished" else f" ({wording.state(run)})"),
                wording.network(run["teacher"]),
                wording.network(run["student"]),
                percent(run["agreement"]),
                wording.nats(run["kl"]),
                wording.number(run["epochs"]),
                wording.count(run["images_per_second"]),
                wording.duration(run["wall_seconds"]),
            ]
        )
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def is_table(data: bytes) -> bool:
    """Returns True if a file is report.md."""
    return data.startswith(f"| {' | '.join(_HEADS)} |".encode())


def _cell(text: str) -> str:
    """Escapes a text for a Markdown table on a page, so that it makes no column, tag or link of its own."""
    for character, instead in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(character, instead)
    return text

"""What a person at the terminal reads: a line, or a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import jax
import tqdm


def say(message: str) -> None:
    """A line for the person at the terminal, above the bar; process 0 only."""
    if jax.process_index() == 0:
        tqdm.tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

    return "\n".join(map(line, lines))

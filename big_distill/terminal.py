"""Writes lines and tables for a person at the terminal, and hides output that nobody should read."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import tqdm

_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia*", "/dev/dxg", "/dev/kfd")  # TPUs, then GPUs
PERIOD_SECONDS = 30
"""Time between two lines about work that takes long."""


def say(message: str) -> None:
    """Prints a line above the progress bar, on process 0 only."""
    if jax.process_index() == 0:
        tqdm.tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()


_said: set[str] = set()


def say_once(message: str) -> None:
    """Prints a line unless this process has printed it since `forget_said`: the stages of a run open the same data."""
    if message not in _said:
        _said.add(message)
        say(message)


def forget_said() -> None:
    """Lets `say_once` print every line again."""
    _said.clear()


@contextlib.contextmanager
def reporting(status: Callable[[], str]) -> Iterator[None]:
    """Says the status of what runs inside, in a line every `PERIOD_SECONDS`, from a thread of its own."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(PERIOD_SECONDS):
            say(status())

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def doing(what: str) -> contextlib.AbstractContextManager[None]:
    """Says what is being done inside, and for how long, if it takes long."""
    began = time.monotonic()
    return reporting(lambda: f"{what} ({interval(time.monotonic() - began)} so far)")


def interval(seconds: float) -> str:
    """Formats a time as minutes and seconds, with hours if there are any."""
    return tqdm.tqdm.format_interval(seconds)


def percent(value: float | None) -> str:
    """Formats a fraction in per cent, and None as '-'."""
    return "-" if value is None else f"{100 * value:.2f} %"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Aligns a table as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])

    return "\n".join(map(line, lines))


def start_devices() -> None:
    """Lets JAX look for devices. What its libraries print about accelerators is dropped if there is none."""
    if any(found for pattern in _ACCELERATORS for found in glob.glob(pattern)):
        jax.devices()
    else:
        with silent():
            jax.devices()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Drops all that is written to the standard error, by C code too. It does nothing if that is closed."""
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

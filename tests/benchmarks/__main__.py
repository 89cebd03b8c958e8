"""Measures what this project does in a second on this machine: prints a table, and writes JSON with --json.

    python tests/benchmarks                                # everything: an hour on two cores
    python tests/benchmarks --only=input,start             # some sections
    python tests/benchmarks --only=step --cases=b,c --ways=uncured,plain --json=FILE
    python tests/benchmarks --tiny                         # checks that it runs; the figures mean nothing

The ways of one block are measured in turns, a round at a time. A figure is the median of the rounds. A ratio compares a
way with the first way of the block: it is the median of the ratios within each round. One ratio is by the clock, the
other is in images for the same processor time, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Sequence

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # takes the checkout's big_distill, installed or not

import inputs
import jax
import measure
import numpy as np
import saves
import start_up
import train_steps

from big_distill.files import atomic

SECTIONS = {"step": train_steps.rows, "input": inputs.rows, "start": start_up.rows, "save": saves.rows}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=choices(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help="Names the sections, separated by commas.")
    parser.add_argument("--cases", default=",".join(train_steps.CASES), help="Names the cases of 'step' and 'save'.")
    parser.add_argument("--ways", default=",".join(train_steps.WAYS), help="Names the ways of 'step'.")
    parser.add_argument("--repeats", type=bounded(int, 1, 1000), default=5, help="Number of rounds.")
    parser.add_argument(
        "--seconds", type=bounded(float, 0, 3600), default=2.0, help="Least seconds of a way in a round."
    )
    parser.add_argument("--tiny", action="store_true", help="Takes small networks and sets, and one round.")
    parser.add_argument("--json", type=writable, help="Writes the rows to this file after every row.")
    args = parser.parse_args(argv)
    for name, known in (("only", SECTIONS), ("cases", train_steps.CASES), ("ways", train_steps.WAYS)):
        value = getattr(args, name)
        if unknown := set(value.split(",")) - set(known):
            parser.error(f"--{name}={value}: {sorted(unknown)[0]!r} is not one of {', '.join(known)}")
    repeats, seconds = (1, 0.0) if args.tiny else (args.repeats, args.seconds)
    effort = measure.Effort(repeats, seconds, args.tiny, tuple(args.cases.split(",")), tuple(args.ways.split(",")))
    report = {"machine": machine(), "rows": []}
    print(measure.HEADER)
    for section in args.only.split(","):
        for row in SECTIONS[section](effort):
            print(row.line(), flush=True)
            report["rows"].append(row.to_json())
            if args.json:  # written now: the next row may fail an hour later
                args.json.write_text(json.dumps(report, indent=2))


def choices() -> str:
    """Describes the sections, cases and ways for --help."""

    def listed(title: str, meanings: dict[str, str]) -> list[str]:
        return [f"{title}:", *(f"  {name:18}{meaning}" for name, meaning in meanings.items()), ""]

    sections = {name: first_line(sys.modules[rows.__module__]) for name, rows in SECTIONS.items()}
    ways = {name: first_line(way) for name, way in train_steps.WAYS.items()}
    cases = {name: case.networks() for name, case in train_steps.CASES.items()}
    return "\n".join([*listed("sections", sections), *listed("cases", cases), *listed("ways", ways)])


def first_line(documented: object) -> str:
    return (documented.__doc__ or "").partition("\n")[0]


def bounded(kind: type, least: float, most: float) -> Callable[[str], float]:
    """Makes a type of arguments: numbers from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {kind.__name__} from {least} to {most}")
        return value

    return parse


def writable(text: str) -> pathlib.Path:
    """Converts an argument to a path, and refuses one that cannot be written."""
    path = pathlib.Path(text)
    try:
        atomic.check_writable(path)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: cannot be written: {error.strerror}") from error
    return path


def machine() -> dict:
    return {
        "platform": jax.default_backend(),
        "devices": jax.device_count(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


if __name__ == "__main__":
    main()

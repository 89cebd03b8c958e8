"""What this project does in a second, on the machine that it runs on: a table, and JSON with --json.

    python tests/benchmarks                                # everything, an hour on two cores
    python tests/benchmarks --only=input,start             # some sections
    python tests/benchmarks --only=step --cases=b,c --ways=uncured,plain --json=FILE
    python tests/benchmarks --tiny                         # whether it runs: the figures mean nothing

The ways of one block are measured in turns, a round at a time. A figure is the median of the rounds; a ratio, to the
first way of the block, is the median of the ratios within each round: by the clock, and in images for the same
processor time, which a busy machine moves less.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))  # the checkout's big_distill, installed or not

import inputs
import jax
import measure
import numpy as np
import saves
import start_up
import train_steps

SECTIONS = {"step": train_steps.rows, "input": inputs.rows, "start": start_up.rows, "save": saves.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--cases", default=",".join(train_steps.CASES), help="of the section 'step'")
    parser.add_argument("--ways", default=",".join(train_steps.WAYS), help="of the section 'step'")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a way in a round, at least; one call, at least")
    parser.add_argument("--tiny", action="store_true", help="small networks and sets, one round")
    parser.add_argument("--json", type=pathlib.Path, help="write the rows there")
    args = parser.parse_args()
    for name, choices in (("only", SECTIONS), ("cases", train_steps.CASES), ("ways", train_steps.WAYS)):
        value = getattr(args, name)
        if unknown := set(value.split(",")) - set(choices):
            parser.error(f"--{name}={value}: {sorted(unknown)[0]!r} is not one of {', '.join(choices)}")
    repeats, seconds = (1, 0.0) if args.tiny else (args.repeats, args.seconds)
    effort = measure.Effort(repeats, seconds, args.tiny, tuple(args.cases.split(",")), tuple(args.ways.split(",")))
    rows = []
    print(measure.HEADER)
    for section in args.only.split(","):
        for row in SECTIONS[section](effort):
            print(row.line(), flush=True)
            rows.append(row.to_json())
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2))


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

"""Evaluates a run on any split: accuracy, NLL and calibration, and fidelity to its teacher.

  python -m big_distill.evaluate --workdir=runs/digits_fm-0123456789ab --split=test
  python -m big_distill.evaluate --workdir=... --split='train[:10%]' --step=best --json

`--packed=FILE` evaluates a file of `big_distill.pack`, or any other weight file of ours, in place of the run's student.
`--step` is `final` (the weights of a finished run), `latest` or `best` (on the validation split), or the number of a
checkpoint that is still there.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
from absl import flags

from big_distill import cli
from big_distill.errors import ConfigError
from big_distill.export.evaluation import evaluate_file
from big_distill.run_dir.layout import to_json
from big_distill.training.evaluation import evaluate_run


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    cli.define_run_flags(split="test")
    flags.DEFINE_string("packed", None, "Evaluates this weight file in place of the run's student.")
    flags.DEFINE_bool("json", False, "Prints JSON instead of a table.")


def main() -> None:
    """Reads the flags, evaluates and prints a table or JSON."""
    args, workdir = flags.FLAGS, cli.run_directory()
    if args.packed and args.step != "final":
        raise ConfigError(f"--packed={args.packed} takes the place of --step={args.step}: give one of them")
    split = cli.test_split(workdir)
    if args.packed:
        scores = evaluate_file(pathlib.Path(args.packed), workdir, split, args.data_dir)
    else:
        scores = evaluate_run(workdir, split, args.step, args.data_dir)
    if jax.process_index() == 0:
        print(to_json(scores) if args.json else table(scores))


def table(scores: dict[str, Any]) -> str:
    """Formats one metric a line, with fractions in per cent."""
    rates = ("accuracy", "top5", "ece", "agreement", "agreement5", "teacher_accuracy")
    return "\n".join(
        f"{name:18}{100 * value:9.2f} %" if name in rates else f"{name:18}{value:9.5g}"
        for name, value in scores.items()
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)

"""Evaluates a run on any split: accuracy, NLL and calibration, and fidelity to its teacher.

  python -m big_distill.evaluate --workdir=runs/digits_fm-0123456789ab --split=test
  python -m big_distill.evaluate --workdir=... --split='train[:10%]' --step=best --json
  python -m big_distill.evaluate --workdir=... --config.source.name=folder --config.source.path=OTHER_PHOTOS

`--config.source.name` names other data. They have the run's classes; where both have names, these must be equal. They
are taken whole, unless --split names a split. `--config.source.path` alone says where the run's own data lie now.
`--packed=FILE` evaluates a file of `big_distill.pack`, or any other weight file of ours, in place of the run's student.
`--step` is `final` (the weights of a finished run), `latest` or `best` (on the validation split), or the number of a
checkpoint that is still there.

`--out=DIR` also writes classes.csv (precision, recall and F1 of each class) and, up to 1,000 classes, confusion.csv and
confusion.svg: rows are labels, columns are answers. Examples without a label count in none of them. Balanced accuracy
is the mean recall, and macro F1 the mean F1, of the classes that have examples in the split. The interval of the
accuracy is Wilson's at 95 %, for independent examples.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
from absl import flags

from big_distill import cli
from big_distill.errors import ConfigError
from big_distill.export.evaluation import add_up_file
from big_distill.run_dir.layout import to_json
from big_distill.step.scoring import MOST_CONFUSED, metrics_of
from big_distill.terminal import percent, say, start_devices
from big_distill.training.evaluation import add_up_run
from big_distill.weights import read_architecture


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    cli.define_run_flags(split="test")
    flags.DEFINE_string("packed", None, "Evaluates this weight file in place of the run's student.")
    flags.DEFINE_string("out", None, "Also writes precision and recall of each class, and the confusion matrix, there.")
    flags.DEFINE_bool("json", False, "Prints JSON instead of a table.")


def main() -> None:
    """Reads the flags, evaluates and prints a table or JSON."""
    start_devices()
    args, workdir = flags.FLAGS, cli.run_directory()
    if args.packed and args.step != "final":
        raise ConfigError(f"--packed={args.packed} takes the place of --step={args.step}: give one of them")
    out = pathlib.Path(args.out) if args.out else None
    if out:
        from big_distill.reporting import class_files  # here, so that Matplotlib is imported only for its figure

        class_files.check_ours(out)
    split = cli.test_split(workdir)
    if args.packed:
        data, totals = add_up_file(pathlib.Path(args.packed), workdir, split, cli.other_data())
    else:
        data, totals = add_up_run(workdir, split, args.step, cli.other_data())
    if jax.process_index() == 0:
        scores = {"data": data, **metrics_of(totals)}
        print(to_json(scores) if args.json else table(scores))
        if out:
            names = read_architecture(workdir).card.class_names
            files = class_files.write(out, totals, names, f"{args.packed or workdir}, {data}")
            if not args.json:
                left_out = "" if "confusion" in totals else f"; no confusion matrix of over {MOST_CONFUSED:,} classes"
                say(f"wrote {', '.join(map(str, files))}{left_out}")


def table(scores: dict[str, Any]) -> str:
    """Formats one metric a line, with fractions in per cent and the interval beside the accuracy."""
    first = ("num_examples", "num_labelled", "accuracy", "balanced_accuracy", "macro_f1")
    scores = {name: scores[name] for name in (*first, *scores) if name in scores}
    numbers = ("num_examples", "num_labelled", "nll", "kl")
    metrics = {name: value for name, value in scores.items() if name != "data"}
    lines = {name: f"{value:9.5g}" if name in numbers else f"{percent(value):>11}" for name, value in metrics.items()}
    lines = {"data": scores["data"], **lines}
    if "accuracy" in lines:
        low, high = (100 * scores[name] for name in ("accuracy_low", "accuracy_high"))
        lines["accuracy"] += f"  (95 % interval: {low:.2f} to {high:.2f} %)"
    return "\n".join(
        f"{name:18}{line}" for name, line in lines.items() if name not in ("accuracy_low", "accuracy_high")
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)

"""Makes one page about runs: what was run, learning curves, sizes, and where a student differs from its teacher.

  python -m big_distill.report --workdirs=runs/digits_fm-c912bd8b8d59 --out=report.html
  python -m big_distill.report --workdirs=runs/a,runs/b,runs/c --data_dir=DIR --figures=pictures
  python -m big_distill.report --workdirs="$(echo runs/*/ | tr ' ' ,)" --nocompare
  python -m big_distill.report --workdirs='"runs/a,b"' --workdirs=runs/c

Double quotes surround a directory whose name has a comma; the shell must not take them away.

The page is one file that needs no other: no script, no network, light and dark. Beside it are report.json, with every
number of the page, and report.md, a table.

  what was run      a row a run, with config, fingerprint, versions and machine; a run that is empty, unfinished or
                    damaged has its row, with all that can be read
  sweep             several runs that differ in a number: test accuracy and agreement against it, a line for each
                    combination of the other fields; runs that differ in their seed alone are averaged
  learning curves   accuracy, KL, agreement and loss against steps, of the student, its teacher and its first stage
                    (of each, if there are up to 16 runs)
  size and speed    accuracy against bytes and latency of every file that big_distill.pack made
  differences       class by class: precision, recall, confusion matrix; images on which only one of the two is right;
                    labels that the teacher contradicts most; how well each is calibrated (if there are up to 16 runs)
  throughput        images a second

The differences need each finished run's student and teacher to run over --split. --nocompare leaves them out, and needs
no data. A relative config.teacher.path of a run starts at the directory that this command is started in.
"""

from __future__ import annotations

import pathlib

from absl import flags

from big_distill import cli
from big_distill.errors import ConfigError
from big_distill.terminal import start_devices


class _Directories(flags.ListParser):
    """Parses a list as absl does, with a clear error for what it cannot split."""

    def parse(self, argument: str | list[str]) -> list[str]:
        if isinstance(argument, str) and any(end in argument for end in "\r\n"):
            raise ValueError("a directory whose name has a line break cannot be named: rename it, or link to it")
        return super().parse(argument)


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    flags.DEFINE_multi(
        _Directories(),
        flags.CsvListSerializer(","),
        "workdirs",
        None,
        'Names the run directories, separated by commas. It can be given again. "a,b" in quotes is one.',
    )
    flags.DEFINE_string("out", "report.html", "Names the page; .json and .md beside it have its name.")
    flags.DEFINE_string("split", None, "Names the split to compare on, in TFDS syntax. Default: each run's test split.")
    flags.DEFINE_bool("compare", True, "Runs students and teachers over a split, for the differences.")
    flags.DEFINE_integer("examples", 12, "Greatest number of images a kind and run.", lower_bound=0, upper_bound=1000)
    flags.DEFINE_string("data_dir", None, "Names the root of the TFDS sets. Default: each run's own.")
    flags.DEFINE_string("figures", None, "Also writes each figure into this directory, as SVG.")


def main() -> None:
    """Reads the flags, writes the page and prints its path."""
    start_devices()
    args = flags.FLAGS
    workdirs = [pathlib.Path(name) for names in args.workdirs or () for name in names if name]
    if not workdirs:
        raise ConfigError("--workdirs=DIR,DIR,... is needed: run directories")
    out = pathlib.Path(args.out)
    if out.suffix != ".html":
        raise ConfigError(f"--out={args.out}: expected FILE.html")
    from big_distill.reporting.build import report

    report(
        workdirs,
        out=out,
        split=args.split,
        data_dir=args.data_dir,
        compare=args.compare,
        num_examples=args.examples,
        figures_dir=pathlib.Path(args.figures) if args.figures else None,
    )
    print(out)


if __name__ == "__main__":
    define_flags()
    cli.run(main)

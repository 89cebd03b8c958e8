"""Packs a run's student into files, reads each back, evaluates what was read, and prints what it weighs.

  python -m big_distill.pack --workdir=runs/deep_compression_lenet300-0123456789ab
  python -m big_distill.pack --workdir=... --step=best --formats=container --split=validation

Formats: `container` (student.bdz: what is shared or mostly zero is entropy-coded) and `safetensors` (float32). They are
written into the run directory, with the table as pack.json. Every file holds the network's card, so
big_distill.load(FILE), --config.teacher.path=FILE and big_distill.evaluate --packed=FILE take it as it is.

In the table `bytes` is the size of the file, `ratio` that of the weights in float32 to it, `bits/weight` its bits by
the number of weights; accuracy and agreement are of the file as it was read back, latency is for one image on this
machine (median), FLOPs are those that XLA counts for it.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
from absl import flags

from big_distill import cli
from big_distill.errors import ConfigError


def define_flags() -> None:
    """Defines the flags: not on import, so that one process can import several commands."""
    flags.DEFINE_string("workdir", None, "The run directory.")
    flags.DEFINE_list("formats", ["container", "safetensors"], "Any of container and safetensors.")
    flags.DEFINE_string("step", "final", "final, latest, best, or the number of a checkpoint.")
    flags.DEFINE_string("split", "test", "Split that the decoded files are evaluated on, in TFDS syntax.")
    flags.DEFINE_string("data_dir", None, "Where TFDS sets are. Default: where the run had them.")


def main() -> None:
    """Reads the flags, packs, prints the table."""
    args = flags.FLAGS
    if not args.workdir:
        raise ConfigError("--workdir=DIR is needed: a run directory")
    from big_distill.packing import pack  # here, so that --help answers at once

    rows = pack(pathlib.Path(args.workdir), args.formats, args.step, args.split, args.data_dir)
    if jax.process_index() == 0:
        print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """One file a line."""
    heads = ("format", "bytes", "ratio", "non-zero", "bits/weight", "accuracy", "agreement", "latency", "FLOPs")
    lines = [heads]
    for row in rows:
        rates = [f"{100 * row[key]:.2f} %" if row[key] is not None else "-" for key in ("accuracy", "agreement")]
        lines.append(
            (
                row["format"],
                f"{row['bytes']:,}",
                f"{row['ratio']:.1f}x",
                f"{row['nonzero']:,}",
                f"{row['bits_per_weight']:.3f}",
                *rates,
                f"{row['latency_ms']:.2f} ms",
                f"{row['flops']:,.0f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    first, *others = widths
    return "\n".join(
        "  ".join([line[0].ljust(first), *(cell.rjust(width) for cell, width in zip(line[1:], others, strict=True))])
        for line in lines
    )


if __name__ == "__main__":
    define_flags()
    cli.run(main)

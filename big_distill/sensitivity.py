"""Shows how much accuracy each layer of a run's student loses when it alone is pruned, and how far it can be.

  python -m big_distill.sensitivity --workdir=runs/cifar10_resnet-0123456789ab --split='train[:5000]'
  python -m big_distill.sensitivity --workdir=... --structure=channels --layers='block.*' --tolerance=0.01

One layer at a time loses its smallest weights, or its least important channels, the others stay whole; nothing is
trained. (Silenced channels still count for GroupNorm and for a BiT's standardised kernels: there it is an estimate.)
Prints a table and writes sensitivity.json and sensitivity.svg into the run directory. The last line holds the
rates at which no layer alone costs more than --tolerance, for the config of a run that starts from this one.
"""

from __future__ import annotations

import math
import pathlib

import jax
from absl import flags

from big_distill import cli
from big_distill.config.checks import check_regex
from big_distill.errors import ConfigError
from big_distill.run_dir.layout import SENSITIVITY_PLOT
from big_distill.terminal import aligned


def define_flags() -> None:
    """Defines the flags: not on import, so that one process can import several commands."""
    flags.DEFINE_string("workdir", None, "The run directory.")
    flags.DEFINE_string("structure", "weights", "weights, or channels: of layers that no skip connection ties.")
    flags.DEFINE_string("split", None, "What to evaluate on, in TFDS syntax. Default: the run's validation split.")
    shares = [str(tenths / 10) for tenths in range(1, 10)] + ["0.95"]
    flags.DEFINE_list("shares", shares, "Shares of a layer to prune.")
    flags.DEFINE_string("layers", ".*", "Regular expression: full paths of the kernels to look at.")
    flags.DEFINE_float("tolerance", 0.01, "How much accuracy one layer may cost.", lower_bound=0.0)
    flags.DEFINE_string("step", "final", "final, latest, best, or the number of a checkpoint.")
    flags.DEFINE_string("data_dir", None, "Where TFDS sets are. Default: where the run had them.")


def main() -> None:
    """Reads the flags, scans, prints the table, draws the plot."""
    args = flags.FLAGS
    if not args.workdir:
        raise ConfigError("--workdir=DIR is needed: a run directory")
    from big_distill.reporting import plots, sensitivity

    try:
        shares = sorted(set(map(float, args.shares)))
    except ValueError as error:
        raise ConfigError(f"--shares={','.join(args.shares)}: expected numbers between 0 and 1") from error
    if not math.isfinite(args.tolerance):
        raise ConfigError(f"--tolerance={args.tolerance}: expected a number")
    check_regex("--layers", args.layers)
    workdir = pathlib.Path(args.workdir)
    found = sensitivity.scan(workdir, args.structure, args.split, shares, args.layers, args.step, args.data_dir)
    if jax.process_index() == 0:
        rates = found.rates(args.tolerance)
        print(table(found, rates))
        plots.sensitivity(workdir / SENSITIVITY_PLOT, found)
        print(workdir / SENSITIVITY_PLOT)
        kept = ", ".join(repr(f"{layer}={rate:g}") for layer, rate in rates.items() if rate)
        scope = f"--config.compress.structure={found.structure} --config.compress.scope=layer"
        scope += " --config.compress.sparsity=0"  # of the layers that are not named
        flag = f'{scope} --config.compress.layer_sparsity="({kept},)"'
        print(
            flag if kept else f"no layer can lose even {100 * found.shares[0]:g} % within --tolerance={args.tolerance}"
        )


def table(found: sensitivity.Scan, rates: dict[str, float]) -> str:  # type: ignore[name-defined]  # noqa: F821
    """One layer a line: the metric in per cent for each share, and the rate."""
    lines = [[found.metric, *(f"{100 * share:g} %" for share in found.shares), "rate"]]
    for layer, values in found.by_layer.items():
        lines.append([layer, *(f"{100 * value:.2f}" for value in values), f"{100 * rates[layer]:g} %"])
    dense = f"as it is, on {found.split}: {100 * found.dense:.2f} %"
    return f"{aligned(lines)}\n{dense}"


if __name__ == "__main__":
    define_flags()
    cli.run(main)

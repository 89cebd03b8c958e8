"""Measures how much accuracy a run's student loses if one layer alone is pruned, and how far each can be pruned.

  python -m big_distill.sensitivity --workdir=runs/cifar10_resnet-0123456789ab --split='train[:5000]'
  python -m big_distill.sensitivity --workdir=... --structure=channels --layers='block.*' --tolerance=0.01

One layer at a time loses its smallest weights or its least important channels. The others stay whole, and nothing is
trained. (Silenced channels still count for GroupNorm and for a BiT's standardised kernels: there it is an estimate.)
The command prints a table and writes sensitivity.json and sensitivity.svg into the run directory. The last line holds
the rates at which no layer alone costs more than --tolerance, for the config of a run that starts from this one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax
from absl import flags

from big_distill import cli
from big_distill.config.checks import regex_mistake
from big_distill.errors import ConfigError
from big_distill.run_dir.layout import SENSITIVITY_PLOT
from big_distill.terminal import aligned, start_devices

if TYPE_CHECKING:
    from big_distill.reporting.sensitivity import Scan


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    cli.define_run_flags(split="validation")
    flags.DEFINE_string("structure", "weights", "Prunes weights, or channels of layers that no skip connection ties.")
    shares = [str(tenths / 10) for tenths in range(1, 10)] + ["0.95"]
    flags.DEFINE_list("shares", shares, "Lists the shares of a layer to prune.")
    flags.DEFINE_string("layers", ".*", "Selects kernels by a regular expression for their full paths.")
    flags.DEFINE_float("tolerance", 0.01, "Accuracy that one layer may cost, as a fraction.", lower_bound=0.0)


def main() -> None:
    """Reads the flags, scans, prints the table and draws the plot."""
    start_devices()
    args, workdir = flags.FLAGS, cli.run_directory()
    from big_distill.reporting import sensitivity

    try:
        shares = sorted(set(map(float, args.shares)))
    except ValueError as error:
        raise ConfigError(f"--shares={','.join(args.shares)}: expected numbers between 0 and 1") from error
    if not math.isfinite(args.tolerance):
        raise ConfigError(f"--tolerance={args.tolerance}: expected a number")
    if wrong := regex_mistake(args.layers):
        raise ConfigError(f"--layers={args.layers!r}{wrong}")
    scan = sensitivity.scan(workdir, args.structure, args.split, shares, args.layers, args.step, cli.other_data())
    if jax.process_index() == 0:
        rates = scan.rates(args.tolerance)
        print(table(scan, rates))
        sensitivity.plot(workdir / SENSITIVITY_PLOT, scan)
        print(workdir / SENSITIVITY_PLOT)
        if kept := ", ".join(repr(f"{layer}={rate:g}") for layer, rate in rates.items() if rate):
            scope = f"--config.compress.structure={scan.structure} --config.compress.scope=layer"
            scope += " --config.compress.sparsity=0"  # for layers that are not named
            print(f'{scope} --config.compress.layer_sparsity="({kept},)"')
        else:
            print(f"no layer can lose even {100 * scan.shares[0]:g} % within --tolerance={args.tolerance}")


def table(scan: Scan, rates: dict[str, float]) -> str:
    """Formats one layer a line: the metric in per cent for each share, and the rate."""
    lines = [[scan.metric, *(f"{100 * share:g} %" for share in scan.shares), "rate"]]
    for layer, values in scan.by_layer.items():
        lines.append([layer, *(f"{100 * value:.2f}" for value in values), f"{100 * rates[layer]:g} %"])
    return f"{aligned(lines)}\nunpruned, on {scan.split}: {100 * scan.dense:.2f} %"


if __name__ == "__main__":
    define_flags()
    cli.run(main)

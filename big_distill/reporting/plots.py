"""Pictures, as SVG files."""

from __future__ import annotations

import pathlib

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from big_distill.reporting.sensitivity import Scan


def sensitivity(path: pathlib.Path, scan: Scan) -> None:
    """The metric of each layer against the share of it that is pruned."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.95, len(scan.by_layer)))
    for (layer, values), colour in zip(scan.by_layer.items(), colours, strict=True):
        axes.plot(
            [0, *(100 * share for share in scan.shares)],
            [100 * scan.dense, *(100 * value for value in values)],
            marker="o",
            markersize=3,
            color=colour,
            gid=layer,
            label=layer.removesuffix("/kernel"),
        )
    axes.set_xlabel(f"{scan.structure} of the layer that are pruned, %")
    axes.set_ylabel(f"{scan.metric} on {scan.split}, %")
    axes.set_title("One layer pruned at a time, nothing trained")
    axes.grid(alpha=0.3)
    columns = -(-len(scan.by_layer) // 24)
    figure.legend(loc="outside right upper", fontsize=7, ncols=columns, frameon=False)
    with mpl.rc_context({"svg.hashsalt": "big_distill"}):
        figure.savefig(path, metadata={"Date": None})

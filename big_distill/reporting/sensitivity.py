"""Measures the cost of pruning one layer alone (Li et al. 2017, arXiv 1608.08710, section 3.2)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence

import jax
import matplotlib as mpl
import numpy as np
import tqdm
from matplotlib.figure import Figure

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.compress import channels
from big_distill.errors import ConfigError
from big_distill.run_dir.layout import SENSITIVITY_FILE, read_config, write_json
from big_distill.terminal import say
from big_distill.training import initial
from big_distill.training.evaluation import (
    NO_FIELDS,
    evaluate,
    jit_eval_step,
    mesh_for,
    open_eval,
    remarks,
    student_of,
    with_data,
)

STRUCTURES = ("weights", "channels")


@dataclasses.dataclass(frozen=True)
class Scan:
    """Holds the metric of a student with one layer at a time pruned.

    metric: 'accuracy', or without labels 'agreement' with the teacher.
    dense: the metric of the student as it is.
    shares: the shares of a layer that were pruned, rising.
    by_layer: the metric for each share, by path of the kernel.
    """

    structure: str
    split: str
    metric: str
    dense: float
    shares: tuple[float, ...]
    by_layer: dict[str, tuple[float, ...]]

    def rates(self, tolerance: float) -> dict[str, float]:
        """Finds by layer the largest share up to which the metric falls by no more than a tolerance; 0 for none."""
        rates = {}
        for layer, values in self.by_layer.items():
            held = [value >= self.dense - tolerance - 1e-9 for value in values]
            count = held.index(False) if False in held else len(held)
            rates[layer] = self.shares[count - 1] if count else 0.0
        return rates


def scan(
    workdir: pathlib.Path,
    structure: str,
    split: str | None,
    shares: Sequence[float],
    layers: str = ".*",
    step: str = "final",
    source: Mapping[str, str | None] = NO_FIELDS,
) -> Scan:
    """Evaluates a run's student with one layer at a time pruned by magnitude. Writes sensitivity.json.

    Args:
      workdir, split, step, source: as in `evaluation.evaluate_run`. The default split is the run's validation split.
      structure: 'weights', or 'channels' (of layers that no skip connection ties).
      shares: the shares to prune, in (0, 1).
      layers: a regular expression of the full paths of the kernels to prune.

    Raises:
      ConfigError: a pattern that matches nothing, no split, nothing to measure.
      RunError: no run, or no such step in it.
    """
    if structure not in STRUCTURES:
        raise ConfigError(f"--structure={structure}: expected one of {', '.join(STRUCTURES)}")
    if not shares or not all(0 < share < 1 for share in shares):
        raise ConfigError(f"--shares={','.join(map(str, shares))}: expected shares between 0 and 1")
    config = read_config(workdir)
    split = split or config.evaluated_on.validation
    if split is None:
        raise ConfigError("--split=SPLIT is needed, such as --split='train[:5000]': this run has no validation split")
    config = with_data(config, source)
    mesh = mesh_for(config)
    student = student_of(workdir, step, mesh)
    data = open_eval(config, split, student.architecture.bit_depth, student.architecture.card.class_names)
    for line in remarks(config, data.source):
        say(line)
    eval_step = jit_eval_step(student.architecture, config, mesh)
    teacher = teachers.load(config, workdir, mesh, student.architecture.card.class_names)
    names, pruned = _pruner(student, structure)
    chosen = [name for name in names if re.fullmatch(layers, name)]
    if not chosen:
        raise ConfigError(f"--layers={layers!r} matches none of {', '.join(names)}")

    dense = evaluate(eval_step, student.variables, teacher, data, mesh)
    metric = "accuracy" if "accuracy" in dense else "agreement"
    if metric == "accuracy":
        teacher = None  # nothing reads it
    if metric not in dense:
        raise ConfigError("the run has neither labels nor a teacher: there is nothing to measure")
    by_layer: dict[str, tuple[float, ...]] = {}
    for name in tqdm.tqdm(chosen, unit="layer", disable=not sys.stderr.isatty()):
        networks = (weights.rebuilt(student, pruned(name, share)) for share in shares)
        by_layer[name] = tuple(evaluate(eval_step, n.variables, teacher, data, mesh)[metric] for n in networks)
    result = Scan(structure, split, metric, dense[metric], tuple(shares), by_layer)
    if jax.process_index() == 0:
        write_json(workdir / SENSITIVITY_FILE, dataclasses.asdict(result))
    return result


def plot(path: pathlib.Path, scan: Scan) -> None:
    """Draws the metric of each layer against the share of it that is pruned, as SVG."""
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


def _pruner(student: weights.Network, structure: str) -> tuple[list[str], Callable[[str, float], weights.Arrays]]:
    """Returns the layers that can be pruned, and a function that prunes a share of one in the network's arrays."""
    arrays = weights.arrays_of(student)

    def without_weights(name: str, share: float) -> weights.Arrays:
        pruned = arrays[f"params/{name}"].copy()
        pruned.flat[np.argsort(np.abs(pruned), axis=None, kind="stable")[: round(share * pruned.size)]] = 0
        return {**arrays, f"params/{name}": pruned}

    if structure == "weights":
        names = [name.removeprefix("params/") for name in arrays if name.startswith("params/")]
        return [name for name in names if name.endswith("/kernel")], without_weights
    folded = initial.folded_arrays_of(student)
    layers = {layer.kernel: layer for layer in initial.prunable(student.architecture)}

    def without_channels(name: str, share: float) -> weights.Arrays:
        layer = layers[name]
        least = np.argsort(channels.importance(layer, folded), kind="stable")
        return channels.silence(layer, arrays, least[: min(round(share * layer.size), layer.size - 1)])

    return list(layers), without_channels

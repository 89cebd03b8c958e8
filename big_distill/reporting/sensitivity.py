"""How much accuracy each layer loses when it alone is pruned (Li et al. 2017, arXiv 1608.08710, section 3.2)."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
import tqdm

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.compress import channels
from big_distill.errors import ConfigError
from big_distill.run_dir.layout import SENSITIVITY_FILE, read_config, write_json
from big_distill.training import transition
from big_distill.training.evaluation import evaluate, jit_eval_step, mesh_for, open_eval, student_of

STRUCTURES = ("weights", "channels")
Pruned = Callable[[float], weights.Arrays]
"""From a share to the network's arrays without so much of one layer."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """What a scan found.

    metric: 'accuracy', or without labels 'agreement' with the teacher.
    dense: the metric of the student as it is.
    shares: of a layer that were pruned, rising.
    by_layer: the metric for each share, by path of the kernel.
    """

    structure: str
    split: str
    metric: str
    dense: float
    shares: tuple[float, ...]
    by_layer: dict[str, tuple[float, ...]]

    def rates(self, tolerance: float) -> dict[str, float]:
        """For each layer the largest share up to which the metric falls by no more than this; 0 for none."""
        found = {}
        for layer, values in self.by_layer.items():
            held = [value >= self.dense - tolerance - 1e-9 for value in values]
            count = held.index(False) if False in held else len(held)
            found[layer] = self.shares[count - 1] if count else 0.0
        return found


def scan(
    workdir: pathlib.Path,
    structure: str,
    split: str | None,
    shares: Sequence[float],
    layers: str = ".*",
    step: str = "final",
    data_dir: str | None = None,
) -> Scan:
    """Evaluates a run's student with one layer at a time pruned by magnitude; writes sensitivity.json.

    Args:
      workdir: the run directory.
      structure: 'weights', or 'channels': those of layers that no skip connection ties.
      split: in TFDS syntax; None: the run's validation split.
      shares: in (0, 1).
      layers: regular expression, full paths of the kernels to look at.
      step: as in `evaluation.evaluate_run`.
      data_dir: where TFDS sets are, if not where the run had them.

    Raises:
      ConfigError: a pattern that matches nothing, no split.
      RunError: no run, or no such step in it.
    """
    if structure not in STRUCTURES:
        raise ConfigError(f"--structure={structure}: expected one of {', '.join(STRUCTURES)}")
    if not shares or not all(0 < share < 1 for share in shares):
        raise ConfigError(f"--shares={','.join(map(str, shares))}: expected shares between 0 and 1")
    config = read_config(workdir)
    split = split or config.evaluated_on.validation
    if split is None:
        raise ConfigError("--split=SPLIT is needed: this run has no validation split; such as --split='train[:5000]'")
    if data_dir:
        config = dataclasses.replace(config, eval_source=dataclasses.replace(config.evaluated_on, data_dir=data_dir))
    mesh = mesh_for(config)
    student, data = student_of(workdir, step, mesh), open_eval(config, split)
    eval_step = jit_eval_step(student.architecture, config, mesh)
    teacher = teachers.load(config, workdir, mesh, student.architecture.card.class_names)
    ways = _by_weight(student) if structure == "weights" else _by_channel(student)
    chosen = [name for name in ways if re.fullmatch(layers, name)]
    if not chosen:
        raise ConfigError(f"--layers={layers!r} matches none of {', '.join(ways)}")

    dense = evaluate(eval_step, student.variables, teacher, data, mesh)
    metric = "accuracy" if "accuracy" in dense else "agreement"
    asked = teacher if metric == "agreement" else None
    if metric not in dense:
        raise ConfigError("the run has neither labels nor a teacher: there is nothing to measure")
    by_layer: dict[str, tuple[float, ...]] = {}
    for name in tqdm.tqdm(chosen, unit="layer", disable=not sys.stderr.isatty()):
        pruned = (weights.rebuilt(student, ways[name](share)).variables for share in shares)
        by_layer[name] = tuple(evaluate(eval_step, variables, asked, data, mesh)[metric] for variables in pruned)
    found = Scan(structure, split, metric, dense[metric], tuple(shares), by_layer)
    if jax.process_index() == 0:
        write_json(workdir / SENSITIVITY_FILE, dataclasses.asdict(found))
    return found


def _by_weight(student: weights.Network) -> dict[str, Pruned]:
    arrays = weights.arrays_of(student)

    def without(name: str, share: float) -> weights.Arrays:
        kernel = arrays[name]
        smallest = np.argsort(np.abs(kernel), axis=None, kind="stable")[: round(share * kernel.size)]
        pruned = kernel.copy()
        pruned.flat[smallest] = 0
        return {**arrays, name: pruned}

    kernels = [name for name in arrays if name.startswith("params/") and name.endswith("/kernel")]
    return {name.partition("/")[2]: lambda share, name=name: without(name, share) for name in kernels}  # type: ignore[misc]


def _by_channel(student: weights.Network) -> dict[str, Pruned]:
    arrays, folded = weights.arrays_of(student), transition.folded_arrays_of(student)
    found = transition.prunable(student.architecture)

    def without(layer: channels.Layer, share: float) -> weights.Arrays:
        least = np.argsort(channels.importance(layer, folded), kind="stable")
        return channels.silence(layer, arrays, least[: min(round(share * layer.size), layer.size - 1)])

    return {layer.kernel: lambda share, layer=layer: without(layer, share) for layer in found}  # type: ignore[misc]

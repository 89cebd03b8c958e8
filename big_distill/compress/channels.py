"""Cuts whole channels out of a network, so that its kernels are smaller.

It cuts only layers that no skip connection ties (`models.features_of`), as Aghli & Ribeiro 2021, "Combining weight
pruning and knowledge distillation for CNN compression". The network itself shows which axes of which parameters belong
to a layer's channels: they grow when the layer does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from big_distill.config import ModelConfig
from big_distill.state import by_path

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layer:
    """Describes a layer whose channels can go.

    kernel: path of the kernel that makes them.
    size: number of channels.
    axes: (path, axis) of all that has an entry for each channel, or several: one for every pixel that is flattened
      with its channels.
    """

    kernel: str
    size: int
    axes: tuple[tuple[str, int], ...]


def layers(model: ModelConfig, features: Sequence[int], abstract: Callable[[ModelConfig], Any]) -> list[Layer]:
    """Finds the layers of a network whose channels can go, in order.

    Args:
      features: its widths, `models.features_of(model)`.
      abstract: function from a ModelConfig to its variables, or their shapes.
    """
    before = _shapes(abstract(dataclasses.replace(model, features=tuple(features))))
    cuttable = []
    for i, size in enumerate(features):
        wider = tuple(width + (j == i) for j, width in enumerate(features))
        after = _shapes(abstract(dataclasses.replace(model, features=wider)))
        axes = tuple(
            (path, axis)
            for path, shape in before.items()
            for axis, (size_before, size_after) in enumerate(zip(shape, after[path], strict=True))
            if size_after != size_before
        )
        made = [path for path, axis in axes if path.endswith("/kernel") and axis == len(before[path]) - 1]
        kernel = max(made, key=lambda path: (len(before[path]), before[path][-2]))  # the others only scale them
        cuttable.append(Layer(kernel.partition("/")[2], size, axes))
    return cuttable


def importance(layer: Layer, arrays: Arrays) -> np.ndarray:
    """Computes how much each channel matters, float64 [size], 1 on average, by the norm of all that reads or writes it.

    It is the mean over kernels and scales of the norm of the entries for a channel, divided by its mean over channels.
    The criterion follows Fang et al. 2023, "DepGraph" (arXiv 2301.12900), section 3.3.
    """
    norms = []
    for path, axis in layer.axes:
        if path in arrays and (arrays[path].ndim > 1 or path.endswith("/scale")):
            entries = _by_channel(arrays[path], axis, layer.size).astype(np.float64)
            norm = np.sqrt(np.square(entries).sum((0, 2)))
            norms.append(norm / max(norm.mean(), 1e-30))
    return np.mean(norms, axis=0)


def choose(
    found: Sequence[Layer], arrays: Arrays, sparsity: Mapping[str, float], everywhere: float | None
) -> list[np.ndarray]:
    """Chooses the channels of each layer that stay, rising, at least one of every layer.

    Args:
      arrays: the folded network's arrays, by path: kernels as they are used, without scales that are in them already.
      sparsity: share of the channels that go, by kernel; 0 for a kernel that is not there.
      everywhere: share of all channels of the layers in `sparsity` that go instead, the least important first; or None.
    """
    scores = [importance(layer, arrays) for layer in found]
    ranked = [score for layer, score in zip(found, scores, strict=True) if layer.kernel in sparsity]
    if everywhere is not None and ranked:
        rising = np.sort(np.concatenate(ranked))
        limit = rising[round(everywhere * len(rising)) - 1] if round(everywhere * len(rising)) else -1
    kept = []
    for layer, score in zip(found, scores, strict=True):
        gone = round(sparsity.get(layer.kernel, 0.0) * layer.size)
        if everywhere is not None:
            gone = int((score <= limit).sum()) if layer.kernel in sparsity else 0
        order = np.argsort(score, kind="stable")
        kept.append(np.sort(order[min(gone, layer.size - 1) :]))
    return kept


def cut(found: Sequence[Layer], arrays: Arrays, kept: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Removes the channels that are not kept from the arrays."""
    smaller = dict(arrays)
    for layer, channels in zip(found, kept, strict=True):
        for path, axis in layer.axes:
            array = smaller[path]
            left = _by_channel(array, axis, layer.size)[:, channels]
            smaller[path] = left.reshape(*array.shape[:axis], -1, *array.shape[axis + 1 :])
    return smaller


def silence(layer: Layer, arrays: Arrays, gone: np.ndarray) -> dict[str, np.ndarray]:
    """Sets all that reads or writes these channels to zero.

    The network computes the same as after `cut`, with two exceptions: GroupNorm still counts the channels, and a BiT
    standardises its kernels over them.
    """
    quiet = dict(arrays)
    for path, axis in layer.axes:
        entries = _by_channel(quiet[path], axis, layer.size).copy()
        entries[:, gone] = 0
        quiet[path] = entries.reshape(arrays[path].shape)
    return quiet


def _by_channel(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Reshapes an array to [everything before, channel, everything after]."""
    return np.asarray(array).reshape(-1, size, math.prod(array.shape[axis + 1 :]))


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in by_path(variables).items()}

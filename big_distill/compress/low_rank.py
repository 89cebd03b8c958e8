"""Kernels as products of smaller ones: by SVD, and by Tucker's decomposition over the two channel axes.

Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power mobile applications" (arXiv
1511.06530), section 3.1. `models.forms` computes with the factors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

Ranks = tuple[int, ...]


def ranks_of_energy(kernel: np.ndarray, energy: float) -> Ranks:
    """The least ranks that keep a share of a kernel's squared norm, in each channel axis on its own.

    Args:
      kernel: [C, F] or [k, k, C, F].
      energy: in (0, 1].

    Returns:
      (rank,) of a matrix or 1 x 1 kernel, else (rank of the inputs, rank of the outputs).
    """
    spectra = [np.linalg.svd(unfolded, compute_uv=False) ** 2 for unfolded in _unfoldings(kernel)]
    return tuple(_rank(spectrum, energy) for spectrum in spectra)


def factorize(kernel: np.ndarray, ranks: Ranks) -> dict[str, np.ndarray]:
    """The factors of a kernel, under the names of `models.forms`; a square one is left out.

    Of a matrix its truncated SVD, the singular values shared evenly; of a k x k kernel the truncated higher-order SVD
    (De Lathauwer et al. 2000).
    """
    kernel = kernel.astype(np.float64)
    if len(ranks) == 1:
        left, values, right = np.linalg.svd(_unfoldings(kernel)[0], full_matrices=False)
        root, rank = np.sqrt(values[: ranks[0]]), ranks[0]
        shape = kernel.shape[:-2]
        factors = {
            "first": (left[:, :rank] * root).reshape(*shape, -1, rank),
            "last": (root[:, None] * right[:rank]).reshape(*shape, rank, -1),
        }
    else:
        bases = [
            np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
            for unfolded, rank in zip(_unfoldings(kernel), ranks, strict=True)
        ]
        square = [rank == channels for rank, channels in zip(ranks, kernel.shape[-2:], strict=True)]
        before, after = (np.eye(len(basis)) if whole else basis for basis, whole in zip(bases, square, strict=True))
        factors = {"core": np.einsum("hwio,ir,os->hwrs", kernel, before, after)}
        if not square[0]:
            factors["first"] = before[None, None]
        if not square[1]:
            factors["last"] = after.T[None, None]
    return {name: factor.astype(np.float32) for name, factor in factors.items()}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with a kernel, [C, F] or [k, k, C, F].

    inputs, outputs: of one image the positions (pixels, tokens) that it reads, and those that it makes.
    """

    kernel: np.ndarray
    inputs: int
    outputs: int

    def multiplications(self, ranks: Ranks = ()) -> int:
        """Of one image by the kernel or, given ranks, by its factors."""
        *window, before, after = self.kernel.shape
        if not ranks:
            return self.outputs * self.kernel.size
        if len(ranks) == 1:
            return self.outputs * ranks[0] * (before + after)
        first = self.inputs * before * ranks[0] if ranks[0] != before else 0
        last = self.outputs * ranks[1] * after if ranks[1] != after else 0
        return first + self.outputs * math.prod(window) * math.prod(ranks) + last


def ranks_for(layers: Mapping[str, Layer], energy: float) -> dict[str, Ranks]:
    """Ranks that keep a share of each kernel's squared norm, see `ranks_of_energy`, where that is cheaper."""
    ranks = {name: ranks_of_energy(layer.kernel, energy) for name, layer in layers.items()}
    return {
        name: found
        for name, found in ranks.items()
        if layers[name].multiplications(found) < layers[name].multiplications()
    }


def ranks_for_flops(layers: Mapping[str, Layer], others: int, share: float) -> dict[str, Ranks]:
    """The ranks of the greatest energy with which a network needs no more than a share of its multiplications.

    Args:
      layers: those that may be factored.
      others: multiplications of all others.
      share: in (0, 1).

    Raises:
      ValueError: even ranks of one need more.
    """
    budget = share * (others + sum(layer.multiplications() for layer in layers.values()))

    def fits(ranks: Mapping[str, Ranks]) -> bool:
        return others + sum(layer.multiplications(ranks.get(name, ())) for name, layer in layers.items()) <= budget

    low, high = 0.0, 1.0
    best = ranks_for(layers, low)
    if not fits(best):
        raise ValueError("even ranks of one need more")
    for _ in range(20):
        energy = (low + high) / 2
        ranks = ranks_for(layers, energy)
        if fits(ranks):
            low, best = energy, ranks
        else:
            high = energy
    return best


def _unfoldings(kernel: np.ndarray) -> list[np.ndarray]:
    """Of a matrix or 1 x 1 kernel itself, [C, F]; else with the inputs, then with the outputs as its rows."""
    *window, before, after = kernel.shape
    kernel = np.asarray(kernel, np.float64)
    if math.prod(window) == 1:
        return [kernel.reshape(before, after)]
    return [np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1) for axis in (-2, -1)]


def _rank(spectrum: np.ndarray, energy: float) -> int:
    if not spectrum.any():
        return 1
    kept = np.cumsum(spectrum) / spectrum.sum()
    return min(int(np.searchsorted(kept, energy * (1 - 1e-12))) + 1, len(spectrum))

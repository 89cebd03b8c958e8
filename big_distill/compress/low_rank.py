"""Factors kernels into smaller ones, by SVD or by Tucker's decomposition over the two channel axes.

The method is that of Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power mobile
applications" (arXiv 1511.06530), section 3.1. `models.variants` computes with the factors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

Ranks = tuple[int, ...]


def spectra(kernel: np.ndarray) -> tuple[np.ndarray, ...]:
    """Computes the squared singular values of each unfolding, falling: the matrix, or along inputs and outputs."""
    return tuple(np.linalg.svd(unfolded, compute_uv=False) ** 2 for unfolded in _unfoldings(kernel))


def ranks_of_energy(spectra: tuple[np.ndarray, ...], energy: float) -> Ranks:
    """Finds the least ranks that keep a share, in [0, 1], of a kernel's squared norm, in each channel axis on its own.

    They are (rank,) of a matrix or 1 x 1 kernel, else (rank of the inputs, rank of the outputs); a rank of 0 is full.
    """
    ranks = tuple(_rank(spectrum, energy) for spectrum in spectra)
    if len(ranks) == 1:
        return ranks
    return tuple(0 if rank == len(spectrum) else rank for rank, spectrum in zip(ranks, spectra, strict=True))


def factorize(kernel: np.ndarray, ranks: Ranks) -> dict[str, np.ndarray]:
    """Computes the factors of a kernel, under the names of `models.variants`.

    A matrix gets its truncated SVD, with the singular values shared evenly between the factors. A k x k kernel gets the
    truncated higher-order SVD (De Lathauwer et al. 2000), without a factor whose rank is 0.
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
        return {name: factor.astype(np.float32) for name, factor in factors.items()}
    factors, core = {}, kernel
    for name, axis, rank, unfolded in zip(("first", "last"), (2, 3), ranks, _unfoldings(kernel), strict=True):
        if rank:
            basis = np.linalg.svd(unfolded, full_matrices=False)[0][:, :rank]
            core = np.moveaxis(np.tensordot(core, basis, (axis, 0)), -1, axis)
            factors[name] = (basis if name == "first" else basis.T)[None, None]
    factors["core"] = core
    return {name: factor.astype(np.float32) for name, factor in factors.items()}


@dataclasses.dataclass(frozen=True)
class Layer:
    """Describes a layer with a kernel, [C, F] or [k, k, C, F].

    inputs, outputs: numbers of positions (pixels, tokens) of one image that it reads, and that it makes.
    """

    kernel: np.ndarray
    inputs: int
    outputs: int

    def multiplications(self, ranks: Ranks = ()) -> int:
        """Counts the multiplications for one image by the kernel or, given ranks, by its factors."""
        *window, before, after = self.kernel.shape
        if not ranks:
            return self.outputs * self.kernel.size
        if len(ranks) == 1:
            return self.outputs * ranks[0] * (before + after)
        first, last = self.inputs * before * ranks[0], self.outputs * ranks[1] * after
        return first + self.outputs * math.prod(window) * (ranks[0] or before) * (ranks[1] or after) + last


def ranks_for(layers: Mapping[str, Layer], energy: float) -> dict[str, Ranks]:
    """Finds ranks that keep a share of each kernel's squared norm, see `ranks_of_energy`, where that is cheaper."""
    return _cheaper(layers, {name: spectra(layer.kernel) for name, layer in layers.items()}, energy)


def ranks_for_flops(layers: Mapping[str, Layer], others: int, share: float) -> dict[str, Ranks]:
    """Finds the ranks of the greatest energy with which a network needs at most a share of its multiplications.

    `layers` may be factored. `others` is the number of multiplications of all other layers.

    Raises:
      ValueError: even ranks of one need more.
    """
    budget = share * (others + sum(layer.multiplications() for layer in layers.values()))
    known = {name: spectra(layer.kernel) for name, layer in layers.items()}

    def fits(ranks: Mapping[str, Ranks]) -> bool:
        return others + sum(layer.multiplications(ranks.get(name, ())) for name, layer in layers.items()) <= budget

    low, high = 0.0, 1.0
    best = _cheaper(layers, known, low)
    if not fits(best):
        raise ValueError("even ranks of one need more")
    for _ in range(20):
        energy = (low + high) / 2
        ranks = _cheaper(layers, known, energy)
        if fits(ranks):
            low, best = energy, ranks
        else:
            high = energy
    return best


def _cheaper(
    layers: Mapping[str, Layer], known: Mapping[str, tuple[np.ndarray, ...]], energy: float
) -> dict[str, Ranks]:
    ranks = {name: ranks_of_energy(known[name], energy) for name in layers}
    return {
        name: rank
        for name, rank in ranks.items()
        if layers[name].multiplications(rank) < layers[name].multiplications()
    }


def _unfoldings(kernel: np.ndarray) -> list[np.ndarray]:
    """Unfolds a kernel: into itself if it is a matrix or 1 x 1, [C, F], else with inputs and with outputs as rows."""
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

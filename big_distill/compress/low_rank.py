"""Kernels as products of smaller ones: by SVD, and by Tucker's decomposition over the two channel axes.

Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low power mobile applications" (arXiv
1511.06530), section 3.1. `models.forms` computes with the factors.
"""

from __future__ import annotations

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


def multiplications(shape: tuple[int, ...], inputs: int, outputs: int, ranks: Ranks = ()) -> int:
    """Multiplications of one image by a kernel or, given ranks, by its factors.

    Args:
      shape: the kernel's, [C, F] or [k, k, C, F].
      inputs: positions that the kernel is applied to.
      outputs: positions that it makes.
      ranks: as `factorize` takes them.
    """
    *window, before, after = shape
    if not ranks:
        return outputs * math.prod(shape)
    if len(ranks) == 1:
        return outputs * ranks[0] * (before + after)
    first = inputs * before * ranks[0] if ranks[0] != before else 0
    last = outputs * ranks[1] * after if ranks[1] != after else 0
    return first + outputs * math.prod(window) * math.prod(ranks) + last


def ranks_for(
    kernels: Mapping[str, np.ndarray], positions: Mapping[str, tuple[int, int]], energy: float
) -> dict[str, Ranks]:
    """Ranks of the kernels that are cheaper factored.

    Args:
      kernels: by layer.
      positions: (inputs, outputs) of each, see `multiplications`.
      energy: see `ranks_of_energy`.
    """
    ranks = {name: ranks_of_energy(kernel, energy) for name, kernel in kernels.items()}
    return {
        name: found
        for name, found in ranks.items()
        if multiplications(kernels[name].shape, *positions[name], found)
        < multiplications(kernels[name].shape, *positions[name])
    }


def ranks_for_flops(
    kernels: Mapping[str, np.ndarray], positions: Mapping[str, tuple[int, int]], others: int, share: float
) -> dict[str, Ranks] | None:
    """The ranks of the greatest energy with which a network needs no more than a share of its multiplications.

    Args:
      kernels, positions: as in `ranks_for`.
      others: multiplications of the kernels that stay as they are.
      share: in (0, 1).

    Returns:
      None if even ranks of one need more.
    """
    dense = others + sum(multiplications(kernel.shape, *positions[name]) for name, kernel in kernels.items())

    def cost(ranks: Mapping[str, Ranks]) -> int:
        return others + sum(
            multiplications(kernel.shape, *positions[name], ranks.get(name, ())) for name, kernel in kernels.items()
        )

    low, high = 0.0, 1.0
    best = ranks_for(kernels, positions, 1e-9)
    if cost(best) > share * dense:
        return None
    for _ in range(20):
        energy = (low + high) / 2
        ranks = ranks_for(kernels, positions, energy)
        if cost(ranks) <= share * dense:
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
    kept = np.cumsum(spectrum) / max(spectrum.sum(), 1e-300)
    return min(int(np.searchsorted(kept, energy * (1 - 1e-12))) + 1, len(spectrum))

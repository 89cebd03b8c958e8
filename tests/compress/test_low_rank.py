"""Checks that kernels as products are as near as their ranks allow, and as cheap as was asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_distill.compress import low_rank
from big_distill.compress.low_rank import Layer


def kernel(*shape, decay=0.7):
    """Makes a kernel whose singular values fall, as those of trained kernels do."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(int(np.prod(shape[:-1])), shape[-1]))
    left, values, right = np.linalg.svd(flat, full_matrices=False)
    return ((left * values * decay ** np.arange(len(values))) @ right).reshape(shape).astype("f")


def product(factors):
    if "core" not in factors:
        return (factors["first"].reshape(-1, factors["first"].shape[-1]) @ factors["last"].reshape(
            factors["last"].shape[-2], -1
        )).reshape(*factors["first"].shape[:-1], -1)  # fmt: skip
    core = factors["core"]
    first = factors["first"][0, 0] if "first" in factors else np.eye(core.shape[2])
    last = factors["last"][0, 0] if "last" in factors else np.eye(core.shape[3])
    return np.einsum("ir,hwrs,so->hwio", first, core, last)


@pytest.mark.parametrize("shape", [(40, 30), (1, 1, 12, 40)])
def test_a_matrix_is_as_near_as_its_rank_allows(shape):
    """The bound is that of Eckart & Young 1936."""
    full = kernel(*shape)
    values = np.linalg.svd(full.reshape(shape[-2:]).astype(float), compute_uv=False)
    for energy in (0.5, 0.9, 0.99):
        (rank,) = low_rank.ranks_of_energy(low_rank.spectra(full), energy)
        kept = np.cumsum(values**2) / np.sum(values**2)
        assert kept[rank - 1] >= energy and (rank == 1 or kept[rank - 2] < energy)
        factors = low_rank.factorize(full, (rank,))
        assert factors["first"].shape == (*shape[:-1], rank) and factors["last"].shape[-2:] == (rank, shape[-1])
        np.testing.assert_allclose(np.sum((product(factors) - full) ** 2), np.sum(values[rank:] ** 2), rtol=1e-3)


def test_a_convolution_by_tucker():
    full = kernel(3, 3, 16, 24)
    ranks = low_rank.ranks_of_energy(low_rank.spectra(full), 0.9)
    factors = low_rank.factorize(full, ranks)
    assert {name: factor.shape for name, factor in factors.items()} == {
        "first": (1, 1, 16, ranks[0]), "core": (3, 3, *ranks), "last": (1, 1, ranks[1], 24),
    }  # fmt: skip
    lost = np.sum((product(factors) - full) ** 2) / np.sum(full**2)
    assert 0 < lost <= 2 * (1 - 0.9), "no more than both axes lose alone"
    whole = low_rank.factorize(full, (0, 0))
    assert sorted(whole) == ["core"]
    np.testing.assert_allclose(product(whole), full, atol=1e-6)


def test_multiplications_are_those_that_xla_counts():
    full, image = kernel(3, 3, 16, 24), np.ones((1, 10, 10, 16), np.float32)
    factors = low_rank.factorize(full, (5, 7))
    conv = {"first": 1, "core": 2, "last": 1}

    def apply(image, kernels):
        for name, kernel in kernels:
            stride = (conv.get(name, 2),) * 2
            image = jax.lax.conv_general_dilated(
                image, kernel, stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return image

    layer = Layer(full, 100, 25)
    ordered = [(name, factors[name]) for name in ("first", "core", "last")]
    for kernels, ranks in (([("kernel", full)], ()), (ordered, (5, 7))):
        names = [name for name, _ in kernels]
        values = [jnp.asarray(value) for _, value in kernels]
        program = jax.jit(lambda image, values, names=names: apply(image, zip(names, values, strict=True)))
        padded = program.lower(image, values).compile().cost_analysis()["flops"] / 2
        assert 0.85 * layer.multiplications(ranks) < padded <= 1.01 * layer.multiplications(ranks)
    assert Layer(kernel(40, 30), 1, 1).multiplications((4,)) == 4 * 70


def test_a_budget_is_kept_and_used():
    layers = {"fc": Layer(kernel(200, 100), 1, 1), "conv": Layer(kernel(3, 3, 16, 24), 100, 100)}
    dense = sum(layer.multiplications() for layer in layers.values())
    for share in (0.2, 0.5, 0.8):
        ranks = low_rank.ranks_for_flops(layers, others=1000, share=share)
        cost = 1000 + sum(layers[name].multiplications(ranks.get(name, ())) for name in layers)
        assert 0.8 * share < cost / (dense + 1000) <= share
    with pytest.raises(ValueError, match="even ranks of one need more"):
        low_rank.ranks_for_flops(layers, others=10 * dense, share=0.5)


def test_only_what_is_cheaper_is_factored():
    layers = {"flat": Layer(np.random.default_rng(0).normal(size=(30, 30)), 1, 1), "steep": Layer(kernel(60, 60), 1, 1)}
    assert list(low_rank.ranks_for(layers, 0.95)) == ["steep"]
    assert low_rank.ranks_for({"zeros": Layer(np.zeros((30, 30)), 1, 1)}, 0.9) == {"zeros": (1,)}

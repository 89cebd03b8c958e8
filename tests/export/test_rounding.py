"""Checks networks rounded without training: near to the originals, small in a file, and read back whole."""

import dataclasses

import jax
import networks
import numpy as np
import pytest

from big_distill import models, weights
from big_distill.export import predictor, rounding
from big_distill.models import vit
from big_distill.weights import container


@pytest.fixture(autouse=True)
def small_vit(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "vit_small", (12, 2, 3))


@pytest.mark.parametrize("family", networks.EACH)
def test_eight_bits_are_near_in_every_family(family):
    example = networks.make_example(family)
    rounded = rounding.quantize(example.network, "int8", lambda: example.pixels)
    assert rounded.architecture.model.activation_bits == 8
    got = predictor.of_network(rounded).classify(example.pixels)
    error = np.abs(got - example.logits).mean() / example.logits.std()
    assert 1e-5 < error < (1 if family == "mobile" else 0.2)  # random squeeze-excites amplify
    for path, kernel in weights.arrays_of(rounded).items():
        if path.startswith("params/") and path.endswith("/kernel"):
            steps = kernel / (np.abs(kernel).max(tuple(range(kernel.ndim - 1))) / 127)
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    again = rounding.quantize(rounded, "int8", lambda: example.pixels)
    for name, array in weights.arrays_of(again).items():
        np.testing.assert_allclose(array, weights.arrays_of(rounded)[name], rtol=1e-6, err_msg=name)


@pytest.mark.full
def test_four_bits_cost_more_and_weigh_less(tmp_path):
    example = networks.make_example("lenet5")
    errors, sizes = [], []
    for precision in ("bfloat16", "int8", "int4"):
        rounded = rounding.quantize(example.network, precision, lambda: example.pixels)
        got = predictor.of_network(rounded).classify(example.pixels)
        errors.append(np.abs(got - example.logits).mean())
        container.write(tmp_path / "a.bdz", weights.contents(rounded))
        sizes.append((tmp_path / "a.bdz").stat().st_size)
        back = weights.load(tmp_path / "a.bdz")
        assert back.architecture == rounded.architecture
        assert weights.sha256(back.variables) == weights.sha256(rounded.variables)
    assert errors[0] < errors[1] < errors[2] and sizes[0] > sizes[1] > sizes[2]
    num_weights = weights.num_params(example.network.variables)
    assert sizes[0] < 2.02 * num_weights + 2000 and sizes[1] < 1.02 * num_weights + 8000
    assert sizes[2] < 0.53 * num_weights + 8000


def test_ranges_are_those_of_the_images():
    example = networks.make_example("cnn")
    rounded = rounding.quantize(example.network, "int8", lambda: example.pixels)
    inputs = jax.tree.leaves(rounded.variables["batch_stats"]["conv1"])
    card = example.network.architecture.card
    view = (example.pixels / 255 - np.array(card.mean)) / np.array(card.std)
    np.testing.assert_allclose(inputs[0], [min(view.min(), 0), view.max()], rtol=1e-5)
    clipped = rounding.quantize(example.network, "int8", lambda: example.pixels // 4)
    got = predictor.of_network(clipped).classify(example.pixels)
    assert np.abs(got - example.logits).mean() > 0.1 * example.logits.std(), "the ranges do not matter"


def test_a_trained_range_stays():
    example = networks.make_example("cnn")
    network = weights.with_input_ranges(example.network, 8)
    own = jax.tree.map(lambda x: x + np.float32([-7, 7]), network.variables["batch_stats"])
    network = dataclasses.replace(network, variables={**network.variables, "batch_stats": own})
    rounded = rounding.quantize(network, "int4", lambda: example.pixels)
    jax.tree.map(np.testing.assert_array_equal, rounded.variables["batch_stats"], own)
    assert weights.with_input_ranges(rounded, 0).architecture.model.activation_bits == 0
    assert models.INPUT_RANGE not in str(weights.with_input_ranges(rounded, 0).variables.keys())

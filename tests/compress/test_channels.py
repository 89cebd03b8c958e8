"""Checks that a network with channels cut out computes what it computes with these channels silent."""

import dataclasses

import jax
import networks
import numpy as np
import pytest
from tiers import cases

from big_distill import models, weights
from big_distill.compress import channels, low_rank
from big_distill.models import vit
from big_distill.training import initial


@pytest.fixture(autouse=True)
def small_vit(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "vit_small", (12, 2, 3))


def logits(network):
    image = np.random.default_rng(1).random((3, *network.architecture.input_shape[1:]), np.float32)
    model = network.architecture.build("float32")
    return np.asarray(jax.jit(lambda v: model.apply(v, image, train=False)[0].logits)(network.variables))


@pytest.mark.parametrize("family", networks.EACH)
def test_a_smaller_network_computes_what_silent_channels_leave(family):
    network = networks.make_example(family).network
    found = initial.prunable(network.architecture)
    features = models.features_of(network.architecture.model)
    assert tuple(layer.size for layer in found) == features and features
    arrays = weights.arrays_of(network)
    gone = {layer.kernel: np.arange(0, layer.size, 3)[: layer.size - 1] for layer in found}
    silent = arrays
    for layer in found:
        silent = channels.silence(layer, silent, gone[layer.kernel])
    kept = [np.setdiff1d(np.arange(layer.size), gone[layer.kernel]) for layer in found]
    smaller = weights.rebuilt(network, channels.cut(found, arrays, kept), features=tuple(map(len, kept)))
    assert sum(x.size for x in jax.tree.leaves(smaller.variables)) < sum(x.size for x in arrays.values())
    want = logits(weights.rebuilt(network, silent))
    assert np.abs(want - logits(network)).max() > 1e-3 * want.std()
    if "bit" in family or family == "mobile_group":  # GroupNorm also counts silent channels
        return
    np.testing.assert_allclose(logits(smaller), want, rtol=0, atol=1e-4 * want.std())


@pytest.mark.parametrize("family", cases("lenet5", full=["lite", "bit"]))
def test_channels_of_factored_layers(family):
    """Factored layers are cut right also if as many channels are left as a factor has ranks."""
    network = networks.make_example(family).network
    layers = initial._dense_layers(network)
    convolution = next(
        n for n, (layer, can) in layers.items() if can and layer.kernel.shape[0] == 3 + 2 * (family == "lenet5")
    )
    kernel = layers[convolution][0].kernel
    rank = kernel.shape[-1] // 2
    arrays = weights.arrays_of(network)
    del arrays[f"params/{convolution}/kernel"]
    for factor, value in low_rank.factorize(kernel, (0, rank)).items():
        arrays[f"params/{convolution}/{factor}/kernel"] = value
    ranks = models.format_ranks({convolution: (0, rank)})
    factored = weights.rebuilt(network, arrays, ranks=ranks)
    found = initial.prunable(factored.architecture)
    kept = [np.arange(layer.size) for layer in found]
    index = next((i for i, layer in enumerate(found) if convolution in layer.kernel), None)
    if index is not None:
        kept[index] = np.arange(rank)  # as many as its ranks
    arrays = weights.arrays_of(factored)
    smaller = weights.rebuilt(factored, channels.cut(found, arrays, kept), features=tuple(map(len, kept)))
    silent = arrays
    for layer, own in zip(found, kept, strict=True):
        silent = channels.silence(layer, silent, np.setdiff1d(np.arange(layer.size), own))
    want, got = logits(weights.rebuilt(factored, silent)), logits(smaller)
    if family != "bit":
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * want.std())


@pytest.mark.full
def test_a_bit_without_channels_is_a_bit_that_never_had_them():
    """The cut network has the kernels that are left, as a network made narrower by hand has them."""
    network = networks.make_example("bit").network
    found = initial.prunable(network.architecture)
    kept = [np.arange(0, layer.size, 2) for layer in found]
    arrays = weights.arrays_of(network)
    smaller = weights.rebuilt(network, channels.cut(found, arrays, kept), features=tuple(map(len, kept)))
    unit, before = smaller.variables["params"]["block1"]["unit01"], network.variables["params"]["block1"]["unit01"]
    np.testing.assert_array_equal(unit["conv1"]["kernel"], before["conv1"]["kernel"][..., ::2])
    np.testing.assert_array_equal(unit["conv2"]["kernel"], before["conv2"]["kernel"][:, :, ::2, ::2])
    np.testing.assert_array_equal(unit["conv3"]["kernel"], before["conv3"]["kernel"][:, :, ::2])
    np.testing.assert_array_equal(unit["gn2"]["scale"], before["gn2"]["scale"][::2])
    np.testing.assert_array_equal(unit["gn1"]["scale"], before["gn1"]["scale"])


@pytest.mark.full
def test_which_layers_and_which_axes():
    found = initial.prunable(networks.make_example("lenet5").network.architecture)
    assert [layer.kernel for layer in found] == ["conv1/kernel", "conv2/kernel", "fc1/kernel"]
    assert found[1].axes == (
        ("params/conv2/bias", 0), ("params/conv2/kernel", 3), ("params/fc1/kernel", 0),
    )  # fmt: skip
    mobile = initial.prunable(networks.make_example("mobile").network.architecture)
    assert {layer.kernel.rpartition("/")[0].rpartition("/")[2] for layer in mobile} == {"expand"}
    paths = {path.partition("/")[2] for path, _ in mobile[1].axes}
    assert {"unit03/depthwise/kernel", "unit03/project/kernel", "unit03/squeeze_excite/reduce/kernel"} <= paths


def example(sizes):
    """Makes a chain of layers whose channel i has norm i + 1: the last channel of each is the largest."""
    arrays, found = {}, []
    for i, size in enumerate(sizes):
        norms = np.arange(1, size + 1, dtype="f")
        arrays |= {f"params/fc{i}/kernel": np.ones((3, 1), "f") * norms, f"params/fc{i}/bias": np.ones(size, "f")}
        found.append(channels.Layer(f"fc{i}/kernel", size, ((f"params/fc{i}/kernel", 1), (f"params/fc{i}/bias", 0))))
    return found, arrays


def test_the_least_important_go():
    found, arrays = example((4, 8))
    kept = channels.choose(found, arrays, {"fc1/kernel": 0.5}, None)
    assert [list(k) for k in kept] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    everywhere = channels.choose(found, arrays, dict.fromkeys(["fc0/kernel", "fc1/kernel"], 0.0), 0.5)
    assert sum(map(len, everywhere)) == 6 and all(
        k[-1] == layer.size - 1 for k, layer in zip(everywhere, found, strict=True)
    )
    one = channels.choose(found, arrays, {"fc0/kernel": 0.99}, None)
    assert list(one[0]) == [3] and len(one[1]) == 8, "one channel stays, and what was not named"
    assert channels.importance(found[0], arrays).mean() == pytest.approx(1)


def test_a_scale_counts():
    found, arrays = example((4,))
    arrays["params/norm/scale"] = np.float32([100, 1, 1, 1])
    layer = dataclasses.replace(found[0], axes=(*found[0].axes, ("params/norm/scale", 0)))
    assert np.argmax(channels.importance(layer, arrays)) == 0

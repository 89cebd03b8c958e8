"""Checks both public namings of BiT: what is inferred, and the logits against NumPy in float64."""

import jax
import numpy as np
import pytest
import reference
from tiers import cases

from big_distill.errors import RunError
from big_distill.models import build
from big_distill.weights.pretrained import bit_npz

K = 7


def random_bit(blocks, features):
    """Draws every parameter of a BiT as the papers describe it, by (block, unit) and layer."""
    rng = np.random.default_rng(0)

    def kernel(size, before, after):
        return rng.normal(0.1, size=(size, size, before, after)).astype("f")

    def norm(channels):
        return {"scale": rng.uniform(0.5, 1.5, channels).astype("f"), "bias": rng.normal(size=channels).astype("f")}

    bit = {"root": kernel(7, 3, features)}
    channels = features
    for i, num_units in enumerate(blocks):
        inner = features * 2**i
        for j in range(num_units):
            unit = {"conv1": kernel(1, channels, inner), "conv2": kernel(3, inner, inner)}
            unit |= {
                "conv3": kernel(1, inner, 4 * inner),
                "gn1": norm(channels),
                "gn2": norm(inner),
                "gn3": norm(inner),
            }
            if j == 0:
                unit["conv_proj"] = kernel(1, channels, 4 * inner)
            bit[i + 1, j + 1] = unit
            channels = 4 * inner
    bit["norm"] = norm(channels)
    bit["head"] = {
        "kernel": rng.normal(size=(channels, K)).astype("f") / channels**0.5,
        "bias": np.arange(K, dtype="f"),
    }
    return bit


def distillation(bit):
    """Gives arrays the names of the distillation release, whose scales and biases are [1, 1, 1, C]."""
    arrays = {"root_block/conv_root/kernel": bit["root"]}
    for place, unit in ((place, unit) for place, unit in bit.items() if isinstance(place, tuple)):
        for layer, value in unit.items():
            name = "block{}/unit{:02d}/{}".format(*place, layer)
            if isinstance(value, dict):
                arrays |= {f"{name}/{kind}": array.reshape(1, 1, 1, -1) for kind, array in value.items()}
            else:
                arrays[f"{name}/kernel"] = value
    arrays |= {f"norm-pre-head/{kind}": array.reshape(1, 1, 1, -1) for kind, array in bit["norm"].items()}
    return arrays | {f"head/{kind}": array for kind, array in bit["head"].items()}


def big_transfer(bit, number=""):
    """Gives arrays the names of Big Transfer; some of its files have a `number` after a layer's name."""
    conv, norm = f"standardized_conv2d{number}/kernel", f"group_norm{number}"
    arrays = {f"resnet/root_block/{conv}": bit["root"]}
    places = {"conv_proj": "a/proj", "conv1": "a", "conv2": "b", "conv3": "c", "gn1": "a", "gn2": "b", "gn3": "c"}
    for place, unit in ((place, unit) for place, unit in bit.items() if isinstance(place, tuple)):
        for layer, value in unit.items():
            name = "resnet/block{}/unit{:02d}/{}".format(*place, places[layer])
            if isinstance(value, dict):
                arrays |= {f"{name}/{norm}/gamma": value["scale"], f"{name}/{norm}/beta": value["bias"]}
            else:
                arrays[f"{name}/{conv}"] = value
    arrays |= {f"resnet/{norm}/gamma": bit["norm"]["scale"], f"resnet/{norm}/beta": bit["norm"]["bias"]}
    head = f"resnet/head/conv2d{number}"
    return arrays | {f"{head}/kernel": bit["head"]["kernel"][None, None], f"{head}/bias": bit["head"]["bias"]}


def as_tree(arrays):
    tree = {}
    for name, array in arrays.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    return tree


@pytest.mark.parametrize(
    "blocks, features, naming, root_pool, depth",
    cases(
        ((2, 2, 2, 2), 16, big_transfer, "zero", 26),
        full=[
            ((3, 4, 6, 3), 16, distillation, "-inf", 50),
            ((1, 1), 192, lambda bit: big_transfer(bit, "_3"), "zero", 0),
            ((1, 1), 192, distillation, "-inf", 0),
        ],
    ),
    ids=["r26", "r50", "x3_numbered", "x3"],
)
def test_translated_weights_give_the_logits_of_numpy_in_float64(blocks, features, naming, root_pool, depth):
    arrays = naming(random_bit(blocks, features))
    found = bit_npz.translate(arrays, "bit.npz")
    assert (found.model.depth, found.model.blocks) == (depth, () if depth else blocks)
    assert (found.model.width, found.model.root_pool, found.num_classes) == (features / 64, root_pool, K)

    image = np.random.default_rng(1).normal(size=(2, 48, 40, 3)).astype("f")
    variables = as_tree(found.arrays)
    logits = jax.jit(lambda v: build(found.model, K, "float32").apply(v, image, train=False)[0].logits)(variables)
    params = jax.tree.map(np.float64, variables["params"])
    root = reference.std_conv(np.float64(image), params["root_block"]["conv_root"], 2)
    assert (reference.max_pool(root, 3, 2, 1, -np.inf) < 0).any(), "the two conventions of the pool agree on this image"
    want = reference.bit(params, np.float64(image), root_pool)
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-3 * want.std(0).mean())


def test_both_namings_give_the_same_arrays():
    bit = random_bit((1, 2), 8)
    ours = [bit_npz.translate(naming(bit), "bit.npz").arrays for naming in (distillation, big_transfer)]
    ours.append(bit_npz.translate({f"params/{n}": a for n, a in distillation(bit).items()}, "bit.npz").arrays)
    for arrays in ours[1:]:
        assert arrays.keys() == ours[0].keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, ours[0][name])


@pytest.mark.parametrize("naming", [distillation, big_transfer])
def test_what_is_missing_or_not_known_is_named(naming):
    arrays = naming(random_bit((1, 1), 8))
    gone = next(name for name in arrays if "block2" in name)
    for changed, message in (
        ({name: a for name, a in arrays.items() if name != gone}, rf"1 of its arrays are missing \({gone}\) and 0"),
        (
            {**arrays, "block2/unit01/bonus": np.ones(1)},
            r"0 .* missing \(-\) and 1 are not known \(block2/unit01/bonus\)",
        ),
        ({"embedding/kernel": np.ones(1)}, "bit.npz is no BiT: .*found embedding/kernel"),
        ({}, "found nothing"),
    ):
        with pytest.raises(RunError, match=message) as error:
            bit_npz.translate(changed, "bit.npz")
        assert "\n" not in str(error.value)

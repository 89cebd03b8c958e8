"""Checks what every family gives beside its logits, and what it says of itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from tiers import cases

from big_distill.config import ModelConfig, template
from big_distill.models import FAMILIES, build, vit
from big_distill.step.views import for_network, to_unit

SHAPES = {  # the embedding's width, and (side, channels) of each map
    "mlp_smaller_than_its_view": (10, None),
    "lenet5": (500, [(8, 20), (2, 50)]),
    "cnn": (12 * 2, [(4, 4), (2, 6)]),
    "six_layer_cnn": (256, [(4, 32), (2, 64)]),
    "bit": (128, [(8, 64), (4, 128)]),
    "bit_zero": (76, [(5, 76)]),
    "lite": (1280, [(16, 8), (8, 8), (4, 16), (2, 32), (1, 1280)]),
    "lite_symmetric": (1280, [(16, 8), (8, 8), (4, 8), (2, 24), (1, 1280)]),
    "mobile": (1280, [(16, 8), (8, 8), (4, 16), (2, 32), (1, 240)]),
    "mobile_group": (1280, [(16, 8), (8, 8), (4, 8), (2, 24), (1, 192)]),
    "vit": (12, [(3, 12)]),
}
each_family = pytest.mark.parametrize("family", networks.EACH)


@pytest.fixture(autouse=True)
def small_vit(monkeypatch):
    monkeypatch.setitem(vit.SIZES, "vit_small", (12, 2, 3))


def outputs_of(family, params, num_classes=networks.K):
    """Computes the network's outputs of five images."""
    example = networks.make_example(family)
    architecture = dataclasses.replace(example.network.architecture, num_classes=num_classes)
    image = for_network(to_unit(example.pixels), architecture.card)
    variables = {**example.network.variables, "params": params}
    return jax.jit(functools.partial(architecture.build("float32").apply, train=False))(variables, image)[0]


def params_of(family):
    return networks.make_example(family).network.variables["params"]


@each_family
def test_an_embedding_and_a_map_a_stage(family):
    params, (width, maps) = params_of(family), SHAPES[family]
    outputs = outputs_of(family, params)
    assert outputs.embedding.shape == (5, width) and outputs.token_logits is None
    assert maps == (outputs.maps and [(x.shape[1], x.shape[3]) for x in outputs.maps])
    assert not maps or all(x.shape[:2] == (5, x.shape[2]) for x in outputs.maps)
    logits = np.float64(outputs.embedding) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-5, atol=1e-5 * logits.std())


@pytest.mark.parametrize("family", cases("bit_zero", full=["bit", "lite", "lite_symmetric"]))
def test_the_last_map_is_what_is_pooled(family):
    outputs = outputs_of(family, params_of(family))
    means = np.float64(outputs.maps[-1]).mean((1, 2))
    np.testing.assert_allclose(outputs.embedding, means, rtol=1e-5, atol=1e-6 * means.std())


@each_family
def test_a_network_without_classes_has_no_head(family):
    architecture = dataclasses.replace(networks.make_example(family).network.architecture, num_classes=0)
    params = {name: value for name, value in params_of(family).items() if name != "head"}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, architecture.abstract_variables()["params"])
    outputs = outputs_of(family, params, num_classes=0)
    assert outputs.logits is None
    np.testing.assert_allclose(outputs.embedding, outputs_of(family, params_of(family)).embedding, rtol=1e-5, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(
    "config, expected",  # timm's; EfficientNet-Lite's last map is after the 1 x 1 convolution here
    [
        (ModelConfig("efficientnet_lite0"), [(32, 16), (16, 24), (8, 40), (4, 112), (2, 1280)]),
        (ModelConfig("mobilenet_v3_large"), [(32, 16), (16, 24), (8, 40), (4, 112), (2, 960)]),
        (ModelConfig("bit", depth=50), [(16, 256), (8, 512), (4, 1024), (2, 2048)]),
    ],
)
def test_maps_of_the_real_networks(config, expected):
    model, image = build(config, 10, "float32"), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    outputs, _ = jax.eval_shape(functools.partial(model.apply, train=False), variables, image)
    assert [(x.shape[1], x.shape[3]) for x in outputs.maps] == expected


def test_patch_tokens_lie_where_their_patches_do():
    """Attention adds nothing here, so that a token depends only on its own patch."""
    model = build(ModelConfig("vit_small", patch_size=4), 0, "float32")
    image = np.random.default_rng(0).random((1, 8, 12, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = networks.random_variables(shapes)
    for name in ("block01", "block02"):
        out = variables["params"][name]["attention"]["out"]
        variables["params"][name]["attention"]["out"] = jax.tree.map(np.zeros_like, out)
    other = image.copy()
    other[0, :4, 8:] += 1  # the last patch of the first row
    (before,), (after,) = (model.apply(variables, x, train=False)[0].maps for x in (image, other))
    assert before.shape == (1, 2, 3, 12)
    changed = np.abs(np.asarray(before - after)).max((0, 3)) > 1e-6
    assert changed.tolist() == [[False, False, True], [False, False, False]]


def test_a_map_that_nobody_reads_is_not_in_the_program():
    model = build(ModelConfig("vit_small", patch_size=4), 3, "float32")
    image = jax.ShapeDtypeStruct((1, 8, 12, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    apply = functools.partial(model.apply, train=False)
    alone, all_parts = (
        jax.jit(function).lower(variables, image).as_text().count("stablehlo.rsqrt")
        for function in (lambda *args: apply(*args)[0].logits, apply)
    )
    assert (alone, all_parts) == (2 * 2 + 1, 2 * 2 + 2), "the map has a normalisation of its own"


def test_what_config_files_say_of_families_is_so():
    """`config` may not import `models`, so it repeats the names and numbers of stages."""
    (name,) = [field for field in dataclasses.fields(ModelConfig) if field.name == "name"]
    assert list(name.metadata["choices"]) == list(FAMILIES)
    with_stages = [name for name, family in FAMILIES.items() if "blocks" in family.fields]
    assert sorted(template._NUM_STAGES) == sorted(with_stages)
    assert all(FAMILIES[name].num_stages in (0, number) for name, number in template._NUM_STAGES.items())


def test_every_field_is_read_by_some_family():
    read = {field for family in FAMILIES.values() for field in family.fields}
    assert read == {field.name for field in dataclasses.fields(ModelConfig)} - {
        "name", "ranks", "activation_bits", "options"
    }  # fmt: skip

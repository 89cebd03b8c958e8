"""Checks what the configs of timm and Hugging Face beside a weight file say, and that a network is fed accordingly."""

import json

import numpy as np
import pytest
import test_timm_names as timm
from safetensors.numpy import save_file

from big_distill import weights
from big_distill.config import ModelConfig
from big_distill.errors import RunError
from big_distill.models import vit
from big_distill.state import Card
from big_distill.step.views import for_network
from big_distill.weights.pretrained.timm_names import translate

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BIT = ModelConfig("bit", blocks=(1,), width=0.125, root_pool="zero")
NAMES = tuple("abcdefg")  # timm.K of them


@pytest.fixture
def model(tmp_path):
    """Writes a small BiT as timm does, as the hub names its files; returns a function that loads it with a config."""
    path = tmp_path / "model.safetensors"
    save_file(timm.timm_bit(timm.random_arrays(BIT), (1,)), path)

    def load(otherwise=None, **configs):
        for name, values in configs.items():
            (tmp_path / f"{name}.json").write_text(values if isinstance(values, str) else json.dumps(values))
        return weights.load(path, otherwise)

    return load


PRETRAINED = {
    "input_size": [3, 64, 64],
    "interpolation": "bicubic",
    "crop_pct": 0.95,
    "crop_mode": "center",
    "mean": list(MEAN),
    "std": list(STD),
    "num_classes": 1000,  # of the weights that these were tuned from: the one outside wins
    "tag": "goog_in21k",
}
HUB = {"architecture": "resnetv2_50x1_bit", "num_classes": timm.K, "pretrained_cfg": PRETRAINED}
FLAT = {"architecture": "resnetv2_50x1_bit", **PRETRAINED, "num_classes": timm.K}


@pytest.mark.parametrize("config", [HUB, FLAT], ids=["hub", "flat"])
def test_timms_config_is_read(model, config):
    network = model(config=config)
    assert network.architecture.card == Card(64, MEAN, STD)
    assert network.architecture.resize == 67, "floor(64 / 0.95), as timm's transforms compute it"
    said = weights.in_words(network)
    assert "mean, std, image_size from config.json; classes assumed to be in the order of the data" in said
    (remark,) = network.remarks
    assert "config.json has crop_pct=0.95 (resized to 67 px, then cut), interpolation=bicubic" in remark
    assert "resizing is bilinear" in remark


def test_a_run_resizes_as_its_view_says(model):
    declared = weights.ConfigArchitecture(ModelConfig(), timm.K, 3, 99, Card(image_size=90))
    assert model(declared, config=HUB).architecture.resize == 99


def test_what_nobody_says_is_assumed_and_said(model):
    network = model()
    assert network.architecture.card == Card(224)
    assert weights.in_words(network) == (
        f"{network.source}: mean=(0.5,), std=(0.5,) assumed, as usual for bit; "
        "classes assumed to be in the order of the data"
    )
    same = model(config={"model": "a training program's own"})
    assert weights.in_words(same) == weights.in_words(network), "a config of another kind says nothing"


def test_our_own_files_assume_nothing(model, tmp_path):
    weights.save(tmp_path / "own.npz", model(config=HUB))
    own = weights.load(tmp_path / "own.npz")
    assert own.architecture.card == Card(64, MEAN, STD) and not weights.in_words(own) and not own.remarks
    (tmp_path / "own.card.json").write_text(json.dumps({"class_names": NAMES}))
    own = weights.load(tmp_path / "own.npz")
    assert own.architecture.card.class_names == NAMES and "class_names from own.card.json" in weights.in_words(own)


def test_a_card_wins_over_all(model, tmp_path):
    (tmp_path / "model.card.json").write_text(json.dumps({"mean": [0.1], "class_names": NAMES}))
    network = model(config=HUB)
    assert network.architecture.card == Card(64, (0.1,), STD, NAMES)
    said = weights.in_words(network)
    assert "mean, class_names from model.card.json; std, image_size from config.json" in said and "assumed" not in said


@pytest.mark.parametrize("labels", [list(NAMES), {str(i): name for i, name in enumerate(NAMES)}])
def test_classes_are_named(model, labels):
    assert model(config=HUB | {"label_names": labels}).architecture.card.class_names == NAMES
    config = {"model_type": "vit", "id2label": dict(enumerate(NAMES))}
    assert model(config=config).architecture.card.class_names == NAMES


def test_transformers_names_for_classes_without_names_are_none(model):
    config = {"id2label": {str(i): f"LABEL_{i}" for i in range(timm.K)}}
    assert model(config=config).architecture.card.class_names == ()


PREPROCESSORS = {
    "vit": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 96, "width": 96}},
    "old": {"image_mean": MEAN, "image_std": STD, "size": 96, "do_resize": True, "resample": 3},
    "cut": {
        "image_mean": MEAN,
        "image_std": STD,
        "size": {"shortest_edge": 110},
        "crop_size": 96,
        "do_normalize": True,
    },
    "halves": {
        "image_mean": [0.5] * 3,
        "image_std": STD,
        "rescale_factor": 1 / 127.5,
        "rescale_offset": True,
        "size": 96,
    },
    "bytes": {"image_mean": [127.5], "image_std": [57.0], "do_rescale": False, "size": [96, 96], "do_flip": False},
    "units": {"do_normalize": False, "image_mean": MEAN, "image_std": STD, "size": 96},
}


def as_transformers_does(values, pixels):
    """Computes rescaling and normalisation as transformers' BaseImageProcessor does."""
    x = pixels.astype(np.float64)
    if values.get("do_rescale", True):
        x = x * values.get("rescale_factor", 1 / 255) - bool(values.get("rescale_offset"))
    if values.get("do_normalize", True):
        x = (x - values["image_mean"]) / values["image_std"]
    return x


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_a_preprocessor_of_hugging_face_is_read(model, name):
    values = PREPROCESSORS[name]
    network = model(preprocessor_config=values)
    card = network.architecture.card
    assert card.image_size == 96
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    fed = for_network(np.float32(pixels) / 255, card)
    np.testing.assert_allclose(fed, as_transformers_does(values, pixels), atol=2e-5)
    assert "mean, std, image_size from preprocessor_config.json" in weights.in_words(network)
    assert network.architecture.resize == (110 if name == "cut" else 96)
    remarks = {"vit": "squashed to a square", "old": "interpolation=bicubic", "cut": "resized to 110 px, then cut"}
    assert remarks.get(name, "") in network.remarks[0]


@pytest.mark.parametrize(
    "configs, message",
    [
        ({"config": HUB | {"num_classes": 1000}}, r"config.json says num_classes=1000, but the network has 7"),
        ({"config": HUB | {"architecture": "vit_small_patch16_224"}}, r"holds a bit, but .* is of 'vit_small_patch16"),
        ({"config": FLAT | {"input_size": [1, 64, 64]}}, r"config.json says channels=1, but the network has 3"),
        ({"config": FLAT | {"input_size": [3, 64, 48]}}, r"config.json cannot be used .*expected a square"),
        ({"config": FLAT | {"std": [0, 1, 1]}}, r"config.json makes no card: std=.* above 0"),
        ({"config": FLAT | {"mean": "half"}}, r"config.json cannot be used for model.safetensors"),
        ({"config": FLAT | {"label_names": ["a", "a", *"bcdef"]}}, r"names the class 'a' more than once"),
        ({"config": FLAT | {"label_names": ["a"]}}, r"1 class_names, but the network has 7"),
        ({"config": {"id2label": ["a"]}}, r"config.json cannot be used"),
        ({"config": {"pretrained_cfg": 3}}, r"config.json cannot be used"),
        ({"config": "{"}, r"config.json cannot be used"),
        ({"preprocessor_config": {"do_flip_channel_order": True}}, r"do_flip_channel_order=true: a card cannot say"),
        ({"preprocessor_config": {"do_pad": True}}, r"do_pad=true: a card cannot say that"),
        ({"preprocessor_config": {"size": {"height": 96, "width": 64}}}, r"size=.*expected the side of a square"),
        ({"preprocessor_config": {"size": {"longest_edge": 96}}}, r"size=.*expected the side of a square"),
        ({"preprocessor_config": {"rescale_factor": 0, "do_normalize": True}}, r"preprocessor_config.json cannot be"),
        (
            {"config": HUB, "preprocessor_config": PREPROCESSORS["vit"]},
            r"image_size is 64 in config.json, 96 in prepro",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(model, configs, message):
    with pytest.raises(RunError, match=message) as error:
        model(**configs)
    assert "\n" not in str(error.value)


def test_the_config_names_the_network(large):
    """The hub calls every file model.safetensors; timm's name says how the network pads."""
    for name, padding in (("tf_mobilenetv3_large_100", "same"), ("mobilenetv3_large_100.ra_in1k", "symmetric")):
        assert translate(large, "model.safetensors", name).model.padding == padding
    with pytest.raises(RunError, match="only timm's name says"):
        translate(large, "model.safetensors")


@pytest.mark.parametrize(
    "name, mean, named",  # from default_cfgs of timm 1.0.31
    [
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k.safetensors", (0.5,), True),
        ("vit_base_patch16_224_miil.in21k_ft_in1k.safetensors", (0.0,), True),
        ("vit_base_patch16_224_1k_miil_84_4-2deb18e3.pth", (0.0,), True),
        ("deit_base_patch16_224-b5f2ef4d.pth", MEAN, True),
        ("models--timm--deit_base_patch16_224.fb_in1k/snapshots/0ab/model.safetensors", MEAN, True),
        ("vit_base_patch16_224.dino/head.pth", MEAN, True),
        ("vit_base_patch16_224.mae.safetensors", MEAN, True),
        ("/home/mae/deit_runs/vit_base.pth", (0.5,), False),
        ("tuned.pth", (0.5,), False),
    ],
)
def test_vits_that_are_normalised_in_another_way(monkeypatch, name, mean, named):
    monkeypatch.setattr(vit, "SIZES", {"vit_base": (24, 2, 3)})
    found = translate(timm.random_vit(24, 2, 4, 10), name)
    assert (found.mean, found.named) == (mean, named)


@pytest.mark.parametrize(
    "name, mean, padding",
    [
        ("mobilenetv3_large_100.ra_in1k", MEAN, "symmetric"),
        ("mobilenetv3_large_100.miil_in21k_ft_in1k", (0.0,), "symmetric"),
        ("mobilenetv3_large_100_1k_miil_78_0-66471c13.pth", (0.0,), "symmetric"),
        ("mobilenetv3_large_100.ra4_e3600_r224_in1k", (0.5,), "symmetric"),
        ("tf_mobilenetv3_large_100.in1k", (0.5,), "same"),
    ],
)
def test_mobile_networks_that_are_normalised_in_another_way(large, name, mean, padding):
    found = translate(large, name)
    assert (found.mean, found.model.padding, found.named) == (mean, padding, True)
    assert found.std == {0.0: (1.0,), 0.5: (0.5,)}.get(mean[0], STD)


@pytest.fixture(scope="module")
def large():
    return timm.timm_mobile(timm.random_arrays(ModelConfig("mobilenet_v3_large")), timm.LARGE_STAGES)

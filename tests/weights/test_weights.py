"""Checks weight files: the package's own with a card, and the bare ones of the BiT distillation release."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from big_distill import weights
from big_distill.config import ModelConfig
from big_distill.errors import RunError
from big_distill.state import Card
from big_distill.step.optim import path_name


@pytest.fixture
def bit():
    card = Card(image_size=32, mean=(0.5, 0.4, 0.3), class_names=("rose", "daisy", "lily"))
    return weights.ConfigArchitecture(ModelConfig(name="bit", blocks=(1,), width=0.125), 3, 3, 40, card)


@pytest.fixture
def network(bit):
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), bit.abstract_variables())
    return weights.Network(bit, variables)


def test_round_trip(network, tmp_path):
    weights.save(tmp_path / "w.npz", network)
    loaded = weights.load(tmp_path / "w.npz")
    assert loaded.architecture == network.architecture
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


def test_a_card_keeps_the_fit(bit, tmp_path):
    """A file of a network that sees the centre is what it was before there was another fit."""
    assert "fit" not in bit.to_json()
    padded = dataclasses.replace(bit, fit="pad")
    for architecture in (bit, padded):
        assert weights.from_json(json.dumps(architecture.to_json()), tmp_path) == architecture
    with pytest.raises(RunError, match=r"damaged card: fit='Pad' is not known; did you mean 'pad'\?"):
        weights.from_json(json.dumps({**padded.to_json(), "fit": "Pad"}), tmp_path)


def bare(network):
    """Makes the release's form: no card, no params/, and normalisation with axes of length one."""
    leaves = {path_name(p): x for p, x in jax.tree_util.tree_leaves_with_path(network.variables["params"])}
    return {name: x.reshape(1, 1, 1, -1) if "gn" in name or "norm" in name else x for name, x in leaves.items()}


def test_bare_names_are_told_apart_or_declared(network, bit, tmp_path):
    arrays = bare(network)
    assert "block1/unit01/conv2/kernel" in arrays and arrays["norm-pre-head/scale"].ndim == 4
    np.savez(tmp_path / "w.npz", **arrays)
    loaded = weights.load(tmp_path / "w.npz", otherwise=bit)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)
    told = weights.load(tmp_path / "w.npz").architecture
    assert (told.model, told.num_classes, told.card.image_size) == (bit.model, 3, 224)
    np.savez(tmp_path / "w.npz", **{"fc/kernel": np.zeros((3, 3))})
    with pytest.raises(RunError, match=r"w.npz is no BiT"):
        weights.load(tmp_path / "w.npz")


def test_what_does_not_fit_is_named(network, bit, tmp_path):
    arrays = bare(network)
    arrays["head/kernal"] = arrays.pop("head/kernel")
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(RunError, match=r"1 parameters are missing \(params/head/kernel\), 1 are not known"):
        weights.load(tmp_path / "w.npz", otherwise=bit)
    arrays = bare(network)
    arrays["head/kernel"] = arrays["head/kernel"].T
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(RunError, match=r"params/head/kernel has shape \(3, 32\), the architecture has \(32, 3\)"):
        weights.load(tmp_path / "w.npz", otherwise=bit)


def test_a_card_beside_a_file_of_others_wins(network, tmp_path):
    np.savez(tmp_path / "w.npz", **bare(network))
    card = tmp_path / "w.card.json"
    card.write_text(json.dumps({"value_range": [-1, 3], "image_size": 16, "class_names": ["a", "b", "c"]}))
    assert weights.load(tmp_path / "w.npz").architecture.card == Card(16, (0.25,), (0.25,), ("a", "b", "c"))
    card.write_text(json.dumps({"mean": [0.1, 0.2, 0.3]}))
    assert weights.load(tmp_path / "w.npz").architecture.card == Card(224, (0.1, 0.2, 0.3), (0.5,))
    for wrong, said in {
        '{"means": [0.1]}': r"card.means is not a field of the config; did you mean 'mean'",
        '{"image_size": "16"}': r"image_size",
        '{"std": [0]}': r"std=\(0.0,\): expected finite numbers, those of std above 0",
        '{"std": [NaN]}': r"std=nan: expected a finite number",
        '{"image_size": null}': r"card.image_size must be set",
        '{"image_size": 0}': r"image_size=0: expected an integer from 1 to 1048576",
        '{"class_names": 5}': r"expected values of type str, such as \('a','b'\)",
        '{"value_range": [1, 1]}': r"is not a card: ",
        '{"value_range": 1}': r"is not a card: ",
        "[]": r"is not a card: ",
        '{"class_names": ["a"]}': r"1 class_names, but the network has 3 classes",
        '{"class_names": ["a", "b", "a"]}': r"class_names has 'a' more than once",
        "{": r"w.card.json is not a card: ",
        '{"value_range": [0, 1], "std": [1]}': r"value_range stands instead of mean and std",
    }.items():
        card.write_text(wrong)
        with pytest.raises(RunError, match=said) as error:
            weights.load(tmp_path / "w.npz")
        assert str(card) in str(error.value)


def test_a_card_may_have_the_whole_name_of_its_file(network, tmp_path):
    np.savez(tmp_path / "w.npz", **bare(network))
    card = tmp_path / "w.npz.card.json"
    card.write_text(json.dumps({"mean": [0.1, 0.2, 0.3]}))
    assert weights.load(tmp_path / "w.npz").architecture.card.mean == (0.1, 0.2, 0.3)
    (tmp_path / "w.card.json").write_text("{}")
    with pytest.raises(RunError, match=r"w.npz has two cards, w.card.json and w.npz.card.json: remove one"):
        weights.load(tmp_path / "w.npz")


@pytest.mark.parametrize("name", ["w.card.json", "w.pth.card.json", "w.pth.tar.card.json"])
def test_a_card_beside_a_file_with_two_suffixes(tmp_path, name):
    (tmp_path / "w.pth.tar").touch()
    assert weights.card_place(str(tmp_path / "w.pth.tar")) == tmp_path / "w.card.json", "where it is to be written"
    (tmp_path / name).touch()
    assert weights.card_place(str(tmp_path / "w.pth.tar")) == tmp_path / name


def test_a_declared_architecture_must_be_the_files(network, bit, tmp_path):
    np.savez(tmp_path / "w.npz", **bare(network))
    other = dataclasses.replace(bit, model=dataclasses.replace(bit.model, width=0.25))
    with pytest.raises(
        RunError, match=r"w.npz is another network: its width is 0.125, config.teacher.model.width=0.25"
    ):
        weights.load(tmp_path / "w.npz", otherwise=other)


def test_depth_and_blocks_say_the_same():
    fifty, blocks = ModelConfig("bit", depth=50), ModelConfig("bit", blocks=(3, 4, 6, 3))
    weights.check_same(fifty, blocks, "a", "b")
    with pytest.raises(RunError, match=r"a: its blocks is \(3, 4, 6, 3\), b.blocks=\(3, 4, 6\)"):
        weights.check_same(fifty, ModelConfig("bit", blocks=(3, 4, 6)), "a", "b")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "pickle", "card"])
def test_damaged_files_are_one_line(network, tmp_path, damage):
    path = tmp_path / "w.npz"
    weights.save(path, network)
    whole = path.read_bytes()
    if damage == "pickle":
        np.savez(path, weights=np.array([{"a": 1}], dtype=object))
    elif damage == "card":
        np.savez(path, __card__=np.frombuffer(b'{"model": 3}', np.uint8))
    else:
        path.write_bytes({"truncated": whole[:-100], "empty": b"", "text": b"weights"}[damage])
    with pytest.raises(RunError) as error:
        weights.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_an_unfinished_run_says_so(tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory: it has no config\.json"):
        weights.load(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(RunError, match=r"is not a finished run: it has no student\.npz"):
        weights.load(tmp_path)
    (tmp_path / "model.safetensors").touch()  # a snapshot of the hub also has a config.json
    with pytest.raises(RunError, match=r"is not a finished run, but holds model\.safetensors: name one of them"):
        weights.load(tmp_path)


def test_hash_is_of_names_shapes_and_bytes():
    params = {"a": np.zeros((2, 3), np.float32), "b": np.ones(2, np.float32)}
    same = {"b": np.ones(2, np.float32), "a": np.zeros((2, 3), np.float32)}
    assert weights.sha256(params) == weights.sha256(same)
    others = [
        {**params, "b": np.array([1, 1 + 1e-7], np.float32)},
        {**params, "a": np.zeros((3, 2), np.float32)},
        {"a": params["a"], "c": params["b"]},
    ]
    assert len({weights.sha256(tree) for tree in (params, *others)}) == 4
    assert weights.num_params(params) == 8

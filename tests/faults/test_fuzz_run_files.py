"""Checks that random small files of a run directory, and random cards, are read as meant, or give one line."""

import dataclasses
import hashlib
import json
import math
import types

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import assert_one_line, bounded, json_mutations, mutations

from big_distill import models, teacher, weights
from big_distill.config import Config, ModelConfig, TeacherConfig
from big_distill.errors import BigDistillError
from big_distill.export import formats, packing, predictor
from big_distill.main import closing_table
from big_distill.parallel import sharding
from big_distill.run_dir import layout, metrics
from big_distill.state import Card
from big_distill.teacher import activation_ranges, check
from big_distill.weights import files
from big_distill.weights.card import card_beside, card_described
from big_distill.weights.pretrained import input_config

CARD = Card(image_size=32, mean=(0.5, 0.4, 0.3), class_names=("rose", "daisy", "lily"))
BIT = weights.ConfigArchitecture(ModelConfig(name="bit", blocks=(1,), width=0.125), 3, 3, 40, CARD)
MLP = weights.ConfigArchitecture(ModelConfig(name="mlp", features=(4,)), 2, 1, 8, Card(image_size=8))
EXPORTED = b"an exported file"


def read_summary(folder):
    if summary := layout.read_summary(folder):
        closing_table(summary, folder)


def note_resume(folder):
    layout.note_resume(folder, 7)
    assert layout.resumed_at(folder)[-1] == 7


def note_session(folder):
    layout.note_session(folder, 7, ENVIRONMENT)
    assert layout.sessions(folder)[-1]["versions"] == ENVIRONMENT["versions"]


def read_architecture(folder):
    built(weights.read_architecture(folder))


def built(architecture):
    """Builds networks of the package's own families only: others would be imported, as a run directory may ask."""
    if ":" not in architecture.model.name:
        shapes = jax.tree.leaves(architecture.abstract_variables())
        assert all(math.prod(leaf.shape) > 0 for leaf in shapes)


def judge(folder):
    for result in check._read(folder, "key") or []:
        check._judge(result, TeacherConfig(min_accuracy=0.5), "the teacher")


def read_ranges(folder):
    """Reads ranges for a network with one convolution."""
    if ranges := activation_ranges.read(folder, "identity"):
        kernels = {"params": {"conv": {"kernel": np.ones((1, 1, 2, 2))}, "head": {"kernel": np.ones((2, 2))}}}
        network = weights.Network(MLP, kernels)
        config = Config(num_classes=2, teacher=TeacherConfig(dtype="int8"), dtype="float32")
        teacher.freeze([network], config, sharding.make_mesh(), (), ranges)


def add_rows(folder):
    (folder / "trial").mkdir(exist_ok=True)
    packing._put_in_place(folder, folder / "trial", [{"path": "student.bdz"}])


def read_exported(folder):
    (folder / "w.onnx").write_bytes(EXPORTED)
    built(predictor.load(folder / "w.onnx").architecture)


def read_card_of_others(folder):
    card, _ = card_beside(folder / "w.npz", CARD, 3)
    assert card.image_size > 0 and all(math.isfinite(value) for value in (*card.mean, *card.std))


def read_configs_of_others(folder):
    for said in input_config.beside(folder / "w.npz"):
        card, _ = card_described(said, CARD, 3, 3)
        assert card.image_size > 0 and said.resize >= 0
        assert all(math.isfinite(value) for value in (*card.mean, *card.std))


ARCHITECTURE = dataclasses.asdict(BIT)
RESULT = {
    "path": "w.npz",
    "num_params": 3,
    "accuracy": 0.9,
    "plain_accuracy": 0.9,
    "fold_kl": 0.0,
    "fold_agreement": 1.0,
    "num_labelled": 10,
    "orders": {"natural": 0.5},
}
ENVIRONMENT = {"versions": {"jax": "0.10"}, "platform": "cpu", "device_kind": "cpu", "num_devices": 1, "cpu": "EPYC"}
SUMMARY = {
    **{
        "student": {"accuracy": 0.9, "num_params": 10, "num_nonzero": 9},
        "teacher": {"accuracy": None, "num_params": 9},
    },
    **{"agreement": 0.9, "kl": 0.1, "steps": 20, "images_per_second": 1.5, "wall_seconds": 3.0, "resumed_at": [4]},
}
FILES = {  # name: (content, reader)
    "summary.json": (SUMMARY, read_summary),
    "resumes.json": ([3, 9], note_resume),
    "environment.json": ([{"step": 0, **ENVIRONMENT}, {"step": 3, **ENVIRONMENT, "cpu": "Xeon"}], note_session),
    "architecture.json": (ARCHITECTURE, read_architecture),
    "preflight.json": ({"key": "key", "teacher": "identity", "teachers": [RESULT, RESULT]}, judge),
    "calibration.json": ({"teacher": "identity", "ranges": [{"conv": 2.5}]}, read_ranges),
    "pack.json": ([{"path": "student.npz", "bytes": 3}], add_rows),
    "w.onnx.json": (ARCHITECTURE | {"sha256": hashlib.sha256(EXPORTED).hexdigest()}, read_exported),
    "config.json": (
        {
            **{"architecture": "vit_small", "num_classes": 3, "label_names": ["a", "b", "c"]},
            "pretrained_cfg": {"mean": [0.4], "std": [0.2], "input_size": [3, 16, 16], "crop_pct": 0.9},
        },
        read_configs_of_others,
    ),
    "preprocessor_config.json": (
        {
            **{"image_mean": [0.4], "image_std": [0.2], "rescale_factor": 0.0039, "do_normalize": True},
            **{"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}, "crop_pct": 0.9, "resample": 3},
        },
        read_configs_of_others,
    ),
    "w.card.json": ({"value_range": [-1, 3], "image_size": 16, "class_names": ["a", "b", "c"]}, read_card_of_others),
}


@pytest.fixture(params=FILES)
def file(request, tmp_path, monkeypatch):
    """Describes a file of a run directory: its path, its content and its reader."""
    monkeypatch.setattr(models, "fold", lambda _, variables: variables)
    monkeypatch.setitem(formats.FORMATS, "onnx", dataclasses.replace(formats.FORMATS["onnx"], read=lambda _: None))
    value, read = FILES[request.param]
    return types.SimpleNamespace(path=tmp_path / request.param, value=value, read=read)


def refusal(file, data):
    """Returns the line that refuses the file, None if it is read."""
    file.path.write_bytes(data)
    with bounded(megabytes=60):
        try:
            file.read(file.path.parent)
        except BigDistillError as error:
            assert_one_line(error, *() if file.read is judge else (file.path.name,))
            return str(error)
    return None


def test_an_intact_file_is_read(file):
    assert refusal(file, json.dumps(file.value).encode()) is None


@given(data=st.data())
def test_fuzzed_json(file, data):
    refusal(file, json.dumps(data.draw(json_mutations(file.value))).encode())


@given(data=st.data())
def test_fuzzed_bytes(file, data):
    refusal(file, data.draw(mutations(json.dumps(file.value).encode())))


LINES = [{"step": step, "train/loss": 0.5} for step in range(1, 4)]


@given(lines=json_mutations(LINES), tail=mutations(b"", b'{"step": 4}\n', b'{"step": 4, "eval'))
def test_fuzzed_metrics(lines, tail, tmp_path):
    """A resume cuts the metrics, or one line names the line of the file."""
    lines = lines if isinstance(lines, list) else [lines]
    path = tmp_path / metrics.METRICS_FILE
    path.write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode() + tail)
    with bounded():
        try:
            metrics._cut(path, 3, evaluated=True)
        except BigDistillError as error:
            return assert_one_line(error, f"{path}, line ")
    assert all(line["step"] <= 3 for line in metrics.read_metrics(tmp_path))


@pytest.fixture(scope="module")
def arrays():
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), MLP.abstract_variables())
    return weights.contents(weights.Network(MLP, variables))


@given(data=st.data())
def test_fuzzed_cards(data, arrays, tmp_path):
    """The card of a whole weight file, or the shapes and types of its arrays, are changed."""
    card = json.dumps(data.draw(json_mutations(dataclasses.asdict(MLP)))).encode()
    damaged = arrays | {files._CARD: np.frombuffer(card, np.uint8)}
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(arrays)))
        damaged[name] = np.zeros(
            data.draw(st.lists(st.integers(0, 9), max_size=4)),
            data.draw(st.sampled_from(("f4", "i8", "?", "f2", "u1"))),
        )
    np.savez(tmp_path / "w.npz", **damaged)
    with bounded(megabytes=60):
        try:
            network = weights.load(tmp_path / "w.npz")
        except BigDistillError as error:
            return assert_one_line(error)
    weights.check_shapes(network)

"""Checks teachers that are no network of the package: an exported program, and a network without a head."""

import dataclasses
import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import ModelConfig
from big_distill.errors import ConfigError, Preempted, RunError
from big_distill.export.predictor import load
from big_distill.resolve import resolve
from big_distill.run_dir.metrics import read_metrics
from big_distill.state import Card, Model, Outputs
from big_distill.teacher import networks
from big_distill.training.loop import train_and_evaluate


def resolved(config, num_devices=8):
    return resolve(config, num_devices, "cpu")


@dataclasses.dataclass(frozen=True)
class Program(weights.Architecture):
    """Describes a network as an exported program, from (variables, image) to (logits, embedding)."""

    program: bytes
    num_classes: int
    channels: int
    resize: int
    card: Card
    view_size: int = 0

    @functools.cache  # noqa: B019
    def build(self, dtype, *, folded=False):
        exported = export.deserialize(bytearray(self.program))

        def apply(variables, image, *, train, rng=None):
            logits, embedding = exported.call(variables, image)
            return Outputs(logits=logits, embedding=embedding), {}

        return Model(lambda rng, image: jax.tree.unflatten(exported.in_tree, exported.in_avals)[0][0], apply)

    def abstract_variables(self, *, folded=False):
        return self.build("float32").init(None, None)

    def fold(self, variables):
        return variables

    @property
    def identity(self):
        return {"name": "program", "sha256": hashlib.sha256(self.program).hexdigest()}


def as_program(network):
    """Exports a network of the package as a program that only JAX can call."""
    model, shape = network.architecture.build("float32"), network.architecture.input_shape

    def one(variables, image):
        outputs, _ = model.apply(variables, image[None], train=False)
        return outputs.logits[0], outputs.embedding[0]

    (batch,) = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *shape[1:]), jnp.float32)
    exported = export.export(jax.jit(jax.vmap(one, (None, 0))), platforms=("cpu",))(network.variables, images)
    ours = network.architecture
    program = Program(bytes(exported.serialize()), ours.num_classes, ours.channels, ours.resize, ours.card, 8)
    return weights.Network(program, network.variables, "program")


@pytest.mark.full
def test_a_program_is_a_teacher(distilled, tiny, eight_devices, tmp_path, monkeypatch, interrupt_after):
    """A program teaches as its network does, on eight devices, and a resumed run recognises it."""
    train_and_evaluate(resolved(distilled.teacher.config), tmp_path / "teacher")
    native, load_native = weights.load(tmp_path / "teacher"), weights.load
    program = as_program(native)
    monkeypatch.setattr(
        networks.weights, "load", lambda path, *args: program if path == "program" else load_native(path, *args)
    )
    losses = []
    for path in (str(tmp_path / "teacher"), "program"):
        distilled.teacher.path = path
        train_and_evaluate(resolved(distilled), tmp_path / "whole" / path.rpartition("/")[2])
        lines = read_metrics(tmp_path / "whole" / path.rpartition("/")[2])
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    whole = json.loads((tmp_path / "whole" / "program" / "summary.json").read_text())
    interrupt_after(4)
    with pytest.raises(Preempted):
        train_and_evaluate(resolved(distilled), tmp_path / "stopped")
    assert train_and_evaluate(resolved(distilled), tmp_path / "stopped")["params_sha256"] == whole["params_sha256"]
    changed = dataclasses.replace(program, variables=jax.tree.map(lambda x: 2 * x, program.variables))
    assert teachers.identity([changed]) != teachers.identity([program])


def test_a_network_without_a_head_is_no_teacher_of_classes(distilled, tmp_path):
    model = ModelConfig("cnn", features=(8, 16))
    architecture = weights.ConfigArchitecture(model, 0, 1, 8, Card(8))
    variables = architecture.build("float32").init(jax.random.key(0), jnp.zeros(architecture.input_shape))
    assert "head" not in variables["params"]
    weights.save(tmp_path / "headless.npz", weights.Network(architecture, variables))
    assert weights.load(tmp_path / "headless.npz").architecture.num_classes == 0
    with pytest.raises(RunError, match=r"headless.npz has no classes"):
        load(tmp_path / "headless.npz")
    distilled.teacher.path = str(tmp_path / "headless.npz")
    with pytest.raises(ConfigError, match=r"headless.npz has 0 classes, config.num_classes=10"):
        train_and_evaluate(resolved(distilled), tmp_path / "run")

"""Checks the pruning of one layer at a time: its cost, how far it can go, and its figure."""

import dataclasses
import json
import subprocess
import sys
import xml.etree.ElementTree

import jax
import numpy as np
import pytest

from big_distill.errors import ConfigError
from big_distill.parallel import sharding
from big_distill.reporting import sensitivity
from big_distill.reporting.sensitivity import Scan
from big_distill.resolve import resolve
from big_distill.training import evaluation
from big_distill.training.evaluation import evaluate_run


@pytest.fixture
def run(tiny, train_once, tmp_path):
    tiny.total_steps = tiny.eval_every_steps = 150
    tiny.optimizer.lr, tiny.view.crop, tiny.view.flip = 2e-2, "central", False
    train_once(resolve(tiny, jax.device_count(), "cpu"), tmp_path / "run")
    return tmp_path / "run"


def test_what_a_layer_costs(run):
    found = sensitivity.scan(run, "weights", None, [0.3, 0.99])
    assert (found.split, found.metric) == ("validation", "accuracy")
    assert found.dense == evaluate_run(run, "validation")["accuracy"]
    assert list(found.by_layer) == ["conv1/kernel", "conv2/kernel", "head/kernel"]
    assert all(values[1] < found.dense - 0.1 for values in found.by_layer.values())
    assert all(abs(values[0] - found.dense) < 0.1 for values in found.by_layer.values())
    written = json.loads((run / "sensitivity.json").read_text())
    assert written["by_layer"] == {name: list(values) for name, values in found.by_layer.items()}


def test_the_rates_are_for_kernels_alone(run):
    """compress.layers matches kernels alone: a ViT's class token and position embeddings have axes like a kernel's."""
    student = evaluation.student_of(run, "final", sharding.make_mesh())
    params = {**student.variables["params"], "cls": np.ones((1, 1, 4), np.float32)}
    more = dataclasses.replace(student, variables={**student.variables, "params": params})
    names, _ = sensitivity._pruner(more, "weights")
    assert names == ["conv1/kernel", "conv2/kernel", "head/kernel"]


@pytest.mark.full
def test_channels_of_what_no_skip_ties(run):
    found = sensitivity.scan(run, "channels", "train[:200]", [0.75], layers="conv.*")
    assert list(found.by_layer) == ["conv1/kernel", "conv2/kernel"]
    assert found.by_layer["conv2/kernel"][0] < found.dense


def test_rates_are_the_largest_before_it_costs_too_much():
    values = {"a": (0.95, 0.94, 0.80, 0.95), "b": (0.9, 0.9, 0.9, 0.9), "c": (0.95, 0.95, 0.95, 0.945)}
    scan = Scan("weights", "validation", "accuracy", 0.95, (0.2, 0.4, 0.6, 0.8), values)
    assert scan.rates(0.01) == {"a": 0.4, "b": 0.0, "c": 0.8}
    assert scan.rates(0.0) == {"a": 0.2, "b": 0.0, "c": 0.6}


def test_the_picture_has_a_line_a_layer(tmp_path):
    values = {f"layer{i}": tuple(np.linspace(0.9, 0.1 * i, 3)) for i in range(4)}
    sensitivity.plot(tmp_path / "a.svg", Scan("weights", "test", "accuracy", 0.95, (0.2, 0.5, 0.9), values))
    text = (tmp_path / "a.svg").read_text()
    xml.etree.ElementTree.fromstring(text)
    assert all(f'id="layer{i}"' in text for i in range(4))


@pytest.mark.full
def test_the_command_and_its_mistakes(run):
    command = [sys.executable, "-m", "big_distill.sensitivity", f"--workdir={run}", "--shares=0.5,0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["accuracy", "30", "%"] and lines[-1].startswith(
        "--config.compress.structure=weights"
    )
    assert "--config.compress.sparsity=0 " in lines[-1]  # otherwise unnamed layers would lose the config's sparsity
    assert (run / "sensitivity.svg").is_file()
    for flags, message in (
        (["--layers=fc9"], "--layers='fc9' matches none of conv1/kernel"),
        (["--shares=many"], "--shares=many: expected numbers between 0 and 1"),
        (["--structure=rows"], "--structure=rows: expected one of weights, channels"),
    ):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(ConfigError, match="expected shares between 0 and 1"):
        sensitivity.scan(run, "weights", None, [1.0])

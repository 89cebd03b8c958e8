"""Checks that the same config gives the same run: by hash, on any devices and processes, and by recorded values."""

import json
import os
import pathlib

import jax
import numpy as np
import processes
import pytest
from processes import ROOT, STAGED

from big_distill.config.template import load_config
from big_distill.data.pipeline import TrainPipeline
from big_distill.data.sources import open_source
from big_distill.parallel import sharding
from big_distill.resolve import resolve
from big_distill.training.loop import train_and_evaluate

GOLDEN = pathlib.Path(__file__).with_name("golden.json")


def config_of(total_steps):
    config = load_config(ROOT / "configs" / "digits_fm.py")
    config.student.features, config.teacher.config.student.features = (4, 8), (8, 16)
    for stage in (config, config.teacher.config):
        stage.batch_size, stage.optimizer.warmup_steps = 40, 2
        stage.total_steps, stage.log_every_steps, stage.eval_every_steps = total_steps, 1, total_steps
    return config


@pytest.mark.full
def test_twice_is_once(tmp_path):
    config = resolve(config_of(12), jax.device_count(), "cpu")
    for name in ("first", "second"):
        train_and_evaluate(config, tmp_path / name)
    assert processes.outcome(tmp_path / "first") == processes.outcome(tmp_path / "second")


@pytest.mark.full
def test_the_stream_does_not_know_of_devices_or_processes(tmp_path, monkeypatch):
    """The hash of the view that the network saw covers the examples, crops, flips and mixtures of every step."""
    command = [f"{STAGED}:stages=teacher", f"--workdir={tmp_path / 'two'}", "--config.total_steps=12",
               "--config.view.mixup=1.0", "--config.log_view_hash=True"]  # fmt: skip
    together = processes.cluster(*command)
    config = load_config(ROOT / "tests" / "faults" / "staged_digits.py", "stages=teacher")
    config.total_steps, config.view.mixup, config.log_view_hash = 12, 1.0, True
    config = resolve(config, jax.device_count(), "cpu")
    make_mesh, hashes = sharding.make_mesh, {}
    for num_devices in (1, 2, 4, 8):
        mesh = make_mesh(devices=jax.devices()[:num_devices])
        monkeypatch.setattr(sharding, "make_mesh", lambda fsdp, mesh=mesh: mesh)
        train_and_evaluate(config, tmp_path / str(num_devices))
        hashes[num_devices] = view_hashes(tmp_path / str(num_devices))
    outputs = [process.communicate(timeout=processes.HANG_SECONDS) for process in together]
    assert [process.returncode for process in together] == [0, 0], outputs
    hashes["two processes"] = view_hashes(tmp_path / "two")
    assert len(hashes[1]) == 12 == len(set(hashes[1]))
    assert all(found == hashes[1] for found in hashes.values()), hashes


def view_hashes(workdir):
    return [line["train/view_hash"] for line in processes.timeless(workdir) if "train/view_hash" in line]


def test_any_split_of_a_batch_is_the_whole_batch():
    config = resolve(config_of(6), jax.device_count(), "cpu")
    source = open_source(config.source, "train", num_classes=10, image_size=8, channels=1)
    whole = TrainPipeline(config, source).batch(3)
    for num_processes in (2, 4, 8):
        parts = [TrainPipeline(config, source, i, num_processes).batch(3) for i in range(num_processes)]
        for key in ("pixels", "label"):
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), whole[key])


def smooth(workdir):
    """Keeps the metrics that a rounding error changes little: no counts of right answers."""
    kept = ("step", "loss", "grad_norm", "nll", "kl")
    return [
        {key: float(f"{value:.6g}") for key, value in line.items() if key.rpartition("/")[2] in kept}
        for line in processes.timeless(workdir)
    ]


def test_golden(tmp_path):
    """50 steps of a teacher and of its student give the recorded values; another processor changes only rounding.

    `BIG_DISTILL_GOLDEN=write pytest tests/faults/test_determinism.py` records them for the JAX that is installed.
    """
    train_and_evaluate(resolve(config_of(50), jax.device_count(), "cpu"), tmp_path)
    found = {name: smooth(tmp_path / inner) for name, inner in (("teacher", "teacher"), ("student", "."))}
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("BIG_DISTILL_GOLDEN") == "write":
        golden[jax.__version__] = found
        text = json.dumps(golden).replace("{", "\n{")  # one line a step
        GOLDEN.write_text(text + "\n")
    if jax.__version__ not in golden:
        pytest.skip(f"none was recorded for JAX {jax.__version__}, only for {', '.join(golden)}")
    for stage, lines in golden[jax.__version__].items():
        assert len(lines) == len(found[stage]) == 51
        for got, want in zip(found[stage], lines, strict=True):
            assert got == pytest.approx(want, rel=2e-3), stage

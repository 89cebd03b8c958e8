"""Checks packed files of a student: their sizes are those on disk, their scores are those of the files read back."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

import big_distill
from big_distill import pack, weights
from big_distill.errors import ConfigError, RunError
from big_distill.export import packing
from big_distill.export.evaluation import evaluate_file
from big_distill.resolve import resolve
from big_distill.training.evaluation import evaluate_run


@pytest.fixture
def run(tiny, train_once, tmp_path):
    """Trains a student from a teacher: it is pruned, then its weights are shared."""
    teacher = tiny.copy_and_resolve_references()
    first = tiny.copy_and_resolve_references()
    first.compress.sparsity, first.compress.prune_every_steps = 0.9, 1
    tiny.teacher.config, tiny.init_config = teacher, first
    tiny.objective.name = "function_matching"
    tiny.compress.bits = 2
    train_once(resolve(tiny, jax.device_count(), "cpu"), tmp_path / "run")
    return tmp_path / "run"


def test_every_row_is_a_file_that_was_read_back(run):
    rows = packing.pack(run, ["container", "safetensors"], "final", "validation")
    assert json.loads((run / "pack.json").read_text()) == rows
    scores = evaluate_run(run, "validation")
    network = weights.load(run)
    for row, name in zip(rows, ("student.bdz", "student.safetensors"), strict=True):
        assert row["bytes"] == (run / name).stat().st_size
        assert (row["accuracy"], row["agreement"]) == (scores["accuracy"], scores["agreement"])
        assert weights.sha256(weights.load(run / name).variables) == weights.sha256(network.variables)
        assert row["latency_ms"] > 0 and re.search(r", \d+ CPUs?$", row["machine"]) and row["flops"] > 1000
    num_params = weights.num_params(network.variables)
    assert rows[0]["ratio"] == pytest.approx(4 * num_params / rows[0]["bytes"])
    assert rows[0]["bits_per_weight"] == pytest.approx(8 * rows[0]["bytes"] / num_params)
    assert rows[0]["bytes"] < rows[1]["bytes"] and rows[0]["nonzero"] == weights.num_nonzero(
        network.variables["params"]
    )
    lines = pack.table(rows).splitlines()
    assert len(lines) == 3 and len(set(map(len, lines))) == 1 and f"{rows[0]['bytes']:,}" in lines[1]


def test_a_container_is_a_network(run):
    packing.pack(run, ["container"], "final", "validation")
    packing.pack(run, ["container"], "latest", "validation")
    assert (run / "student.bdz").read_bytes() == (run / "student-latest.bdz").read_bytes()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    want = big_distill.load(run).predict(images)
    packed = big_distill.load(run / "student.bdz")
    np.testing.assert_array_equal(packed.predict(images), want)
    assert packed.class_names == tuple("0123456789")
    (run / "student.npz").unlink()
    assert evaluate_file(run / "student.bdz", run, "validation")["num_examples"] == 200


@pytest.mark.full
def test_exported_files_are_networks_too(run):
    for module in ("onnxruntime", "tensorflow", "ai_edge_litert"):
        pytest.importorskip(module)
    scores = evaluate_run(run, "validation")
    formats = ["tflite", "onnx", "stablehlo"]
    rows = packing.pack(run, formats, "final", "validation") + packing.pack(
        run, ["container", *formats], "final", "validation", precision="int8"
    )
    images = list(np.random.default_rng(0).integers(0, 256, (5, 9, 7), np.uint8))
    want = big_distill.load(run).predict(images)
    for row in rows:
        path = run / f"student{'-int8' if row['precision'] else ''}{packing.FORMATS[row['format']].suffix}"
        assert (row["path"], row["bytes"]) == (str(path), path.stat().st_size)
        exported = big_distill.load(path)
        assert exported.class_names == tuple("0123456789")
        np.testing.assert_allclose(exported.predict(images), want, atol=0.1 if row["precision"] else 1e-5)
        assert row["accuracy"] == pytest.approx(scores["accuracy"], abs=0.05 if row["precision"] else 1e-9)
        assert evaluate_file(path, run, "validation")["accuracy"] == row["accuracy"]
        assert row["difference"] < packing.TOLERANCE or row["precision"]
    sizes = {(row["format"], row["precision"]): row["bytes"] for row in rows}
    assert sizes["container", "int8"] < sizes["tflite", "int8"]
    kept = json.loads((run / "pack.json").read_text())
    assert len(kept) == 7 and kept[-4:] == rows[-4:], "those of before are kept"
    (run / "student.onnx.json").unlink()
    with pytest.raises(RunError, match=r"student.onnx.json does not exist: it says what student.onnx expects"):
        big_distill.load(run / "student.onnx")
    (run / "student.tflite").write_bytes(b"TFL3")
    with pytest.raises(RunError, match=r"student.tflite is damaged, or student.tflite.json is not its own"):
        big_distill.load(run / "student.tflite")


@pytest.mark.parametrize(
    ("bits", "error", "allowed"),
    [(0, 0.0008, "0.001 at most"), (8, 0.8, "0.25 on average"), (8, 3.0, "0.25 on average")],
)
def test_a_difference_says_if_it_is_the_mean_or_the_largest(bits, error, allowed, make, tmp_path, capsys):
    example = make("cnn")
    network = weights.rebuilt(example.network, weights.arrays_of(example.network), activation_bits=bits)
    expected = np.tile(np.float32([[-1.0, 1.0]]), (5, 1))  # of standard deviation 1
    logits = expected + np.float32([error, *[0] * 9]).reshape(5, 2)
    (tmp_path / "student.onnx").write_bytes(b"a file")
    words = f"its logits differ from the network's by {error / 10:.2g} on average and {error:.2g} at most"
    if error > 1:
        with pytest.raises(RunError, match=f"{words}, in standard deviations .allowed: {allowed}."):
            packing._check(tmp_path / "student.onnx", network, logits, expected)
        return
    assert packing._check(tmp_path / "student.onnx", network, logits, expected) == pytest.approx(error, rel=1e-3)
    assert f"{words}, in standard deviations (allowed: {allowed})" in capsys.readouterr().out


def network_of(run):
    return weights.load(run)


@pytest.mark.full
def test_mistakes_are_one_line(run, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"--formats=conteiner: 'conteiner' is not known; did you mean 'container'\?"):
        packing.pack(run, ["conteiner"], "final", "validation")
    names = network_of(run).architecture.card.class_names
    other = dataclasses.replace(network_of(run).architecture.card, class_names=names[::-1])
    weights.save(
        tmp_path / "other.npz",
        dataclasses.replace(
            network_of(run), architecture=dataclasses.replace(network_of(run).architecture, card=other)
        ),
    )
    with pytest.raises(RunError, match=r"other.npz is not of this run: its class_names is \('9'"):
        evaluate_file(tmp_path / "other.npz", run, "validation")
    with pytest.raises(RunError, match="is not a run directory"):
        packing.pack(tmp_path, ["container"], "final", "validation")

    with pytest.raises(ConfigError, match=r"--quantize=int3: 'int3' is not known; did you mean 'int8'\?"):
        packing.pack(run, ["container"], "final", "validation", precision="int3")

    with pytest.raises(ConfigError, match=r"--formats= is empty"):
        packing.pack(run, [], "final", "validation")
    packing.pack(run, ["container", "container"], "final", "validation")
    packing.pack(run, ["container"], "best", "validation")
    assert [pathlib.Path(row["path"]).name for row in json.loads((run / "pack.json").read_text())] == [
        "student.bdz", "student-best.bdz",
    ]  # fmt: skip

    def lossy(write):
        def written(path, network, views):
            rounded = jax.tree.map(lambda x: np.round(x, 2), network.variables)
            write(path, dataclasses.replace(network, variables=rounded), views)

        return written

    for name, format_ in list(packing.FORMATS.items()):
        monkeypatch.setitem(packing.FORMATS, name, dataclasses.replace(format_, write=lossy(format_.write)))
    packed, kept = (run / "student.bdz").read_bytes(), (run / "pack.json").read_text()
    with pytest.raises(RunError, match=r"student.bdz does not hold what was written into it"):
        packing.pack(run, ["container"], "final", "validation")
    assert ((run / "student.bdz").read_bytes(), (run / "pack.json").read_text()) == (packed, kept)
    assert not (run / ".packing").exists()
    (run / ".packing").mkdir()
    (run / ".packing" / "student.onnx").write_bytes(b"of a pack that was killed")
    with pytest.raises(RunError, match=r"student.stablehlo does not compute what it should: its logits differ from "):
        packing.pack(run, ["stablehlo"], "final", "validation")
    monkeypatch.undo()
    packing.pack(run, ["container"], "final", "validation")
    assert not (run / "student.onnx").exists() and not (run / ".packing").exists()


@pytest.mark.parametrize(
    ("name", "package", "extra"), [("onnx", "onnxruntime", "onnx"), ("tflite", "tensorflow", "tf")]
)
def test_a_missing_extra_is_found_before_anything_is_read_or_written(tmp_path, monkeypatch, name, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"files need the extra {extra}: pip install 'big_distill\[{extra}\]'"):
        packing.pack(tmp_path / "no run", ["container", name], "final", "validation")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(143)])
def test_a_pack_that_fails_leaves_nothing(tmp_path, error):
    (tmp_path / ".packing").mkdir()
    (tmp_path / ".packing" / "student.onnx").touch()
    with pytest.raises(type(error)), packing._trial_directory(tmp_path) as trial:
        assert not list(trial.iterdir())
        (trial / "student.bdz").touch()
        raise error
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_the_command(run):
    command = [
        sys.executable,
        "-m",
        "big_distill.pack",
        f"--workdir={run}",
        "--formats=container",
        "--split=validation",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "container" in done.stdout and "bits/weight" in done.stdout
    assert all(f"\n  {name:12} {format_.suffix:13} " in pack.__doc__ for name, format_ in packing.FORMATS.items())
    done = subprocess.run(command[:3], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--workdir=DIR is needed" in done.stderr

"""Checks that run directories and packed files of the version that `make.py` names are still what they were.

The last digits depend on the CPU and on the versions of JAX and its libraries. They are compared only if both are those
of the archives.
"""

import json
import pathlib
import tarfile

import jax
import numpy as np
import pytest
from make import cpu
from processes import timeless
from tiers import cases

import big_distill
from big_distill import weights
from big_distill.config import differences, fingerprint
from big_distill.config.template import load_config
from big_distill.export.evaluation import evaluate_file
from big_distill.export.packing import pack
from big_distill.reporting.build import report
from big_distill.reporting.diagnosis import examine
from big_distill.resolve import resolve
from big_distill.run_dir.environment import environment
from big_distill.run_dir.layout import read_config
from big_distill.training.evaluation import evaluate_run
from big_distill.training.loop import train_and_evaluate

HERE = pathlib.Path(__file__).parent
FINISHED = ("distilled", "compressed", "quantized")
CONFIGS = {"interrupted": "distilled"} | {name: name for name in FINISHED}
PACKED = {
    "distilled": (
        "student.bdz", "student.safetensors", "student.tflite", "student.onnx", "student.stablehlo",
        "student-int8.bdz", "student-int8.tflite",
    ),
    "compressed": ("student.bdz",),
    "quantized": ("student.bdz", "student.tflite"),
}  # fmt: skip
RUNTIMES = {".onnx": "onnxruntime", ".tflite": "ai_edge_litert"}
CLOCKED = ("latency_ms", "machine")  # fields of a row of pack.json


@pytest.fixture
def unpack(tmp_path, monkeypatch):
    """Returns `unpack(name)`, which unpacks an archive's run directory under the relative name of its training."""
    monkeypatch.chdir(tmp_path)

    def unpacked(name):
        with tarfile.open(HERE / f"{name}.tar.xz") as archive:
            archive.extractall(filter="data")
        return pathlib.Path("runs", name)

    return unpacked


def config_of(name):
    return resolve(load_config(HERE / "digits.py", f"run={CONFIGS[name]}"), 1, jax.default_backend())


def read(workdir, name):
    return json.loads((workdir / name).read_text())


def on_its_machine(workdir):
    """Returns True if this machine computes the same bits."""
    here, there = environment()["versions"], read(workdir, "environment.json")[-1]["versions"]
    same = all(here[name] == there[name] for name in ("jax", "jaxlib", "flax", "optax", "numpy"))
    return same and cpu() == (HERE / "cpu.txt").read_text()


def close_to(workdir, value):
    """Compares metrics of a run: up to rounding, or on another machine up to a few examples' answers."""
    return pytest.approx(value, rel=1e-6) if on_its_machine(workdir) else pytest.approx(value, rel=0.05, abs=0.02)


def shared(values, wanted):
    """Keeps the metrics that the old version had."""
    return {key: values[key] for key in wanted}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_config_names_the_same_run(name, unpack):
    workdir, config = unpack(name), config_of(name)
    assert fingerprint(config) == fingerprint(read_config(workdir)) == read(workdir, "config.json")["fingerprint"]
    for kind in ("maths", "place", "numerics"):
        assert differences(read_config(workdir), config, kind) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_doctor_verifies_all(name, unpack):
    workdir = unpack(name)
    found = examine(workdir)
    assert found.verified, found
    finished = name != "interrupted"
    assert (found.status, found.step) == (("finished", 12) if finished else ("interrupted", 6))
    inner = {"distilled": ["teacher"], "compressed": ["init"], "quantized": ["teacher", "init"]}[CONFIGS[name]]
    assert [(run.workdir.name, run.status) for run in found.inner] == [(name, "finished") for name in inner]
    packed = PACKED.get(name, ())
    unchecked = {"parameters.txt", *(f"{file}.json" for file in packed)}  # each .json is checked with its file
    files = {path.name for path in workdir.iterdir() if path.is_file()} - unchecked
    assert {finding.name for finding in found.findings} == {f"checkpoints/{found.step}", *files} and files >= {*packed}


def test_an_interrupted_run_ends_as_if_it_had_not_been(unpack, capsys):
    workdir, whole = unpack("interrupted"), unpack("distilled")
    summary, wanted = train_and_evaluate(config_of("interrupted"), workdir), read(whole, "summary.json")
    said = "".join(capsys.readouterr())
    assert f"{workdir}/teacher: finished already" in said and f"{workdir}: resumes at step 6 of 12" in said
    assert "goes on" not in said and "lost" not in said and "begun before" not in said
    assert "student: step 6 of 12" in said, "the evaluation that was due"
    assert summary["resumed_at"] == [6] and summary["config_fingerprint"] == wanted["config_fingerprint"]
    for split, values in wanted["scores"].items():
        assert shared(summary["scores"][split], values) == close_to(whole, values)
    wanted_lines = timeless(whole)
    lines = [shared(line, wanted) for line, wanted in zip(timeless(workdir), wanted_lines, strict=True)]
    assert [line["step"] for line in lines] == [line["step"] for line in wanted_lines]
    if on_its_machine(whole):
        assert summary["params_sha256"] == wanted["params_sha256"] and lines == wanted_lines
    student, other = (jax.tree.leaves(weights.load(run).variables) for run in (workdir, whole))
    for leaf, wanted_leaf in zip(student, other, strict=True):
        np.testing.assert_allclose(leaf, wanted_leaf, atol=0.02)


@pytest.mark.parametrize("name", cases("compressed", full=["distilled", "quantized"]))
def test_a_finished_run_is_read_evaluated_and_restored(name, unpack, capsys):
    workdir, config = unpack(name), config_of(name)
    summary = read(workdir, "summary.json")
    assert train_and_evaluate(config, workdir) == summary
    for run in (workdir, *workdir.glob("init")):
        wanted = read(run, "summary.json")["scores"]["test"]
        for step in ("final", "latest", "best"):
            assert shared(evaluate_run(run, "test", step), wanted) == close_to(workdir, wanted)
    kept = {
        file: file.read_bytes() for file in (workdir / "preflight.json", workdir / "calibration.json") if file.exists()
    }
    assert len(kept) == {"distilled": 1, "compressed": 0, "quantized": 2}[name]
    (workdir / "student.npz").unlink()
    capsys.readouterr()
    again = train_and_evaluate(config, workdir)
    assert again["params_sha256"] == summary["params_sha256"]
    assert "goes on" not in "".join(capsys.readouterr())
    if on_its_machine(workdir):
        assert {file: file.read_bytes() for file in kept} == kept


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in PACKED.items() for file in files])
def test_a_packed_file_is_what_it_was(name, file, unpack):
    if runtime := RUNTIMES.get(pathlib.PurePath(file).suffix):
        pytest.importorskip(runtime)
    workdir = unpack(name)
    rows = {row["path"]: row for row in read(workdir, "pack.json")}
    assert rows.keys() == {f"{workdir}/{other}" for other in PACKED[name]}
    row, scores = rows[f"{workdir}/{file}"], evaluate_file(workdir / file, workdir, "test")
    wanted = {key: row[key] for key in ("accuracy", "agreement") if row[key] is not None}
    assert shared(scores, wanted) == close_to(workdir, wanted) and len(wanted) == 1 + (name != "compressed")
    size = read(workdir, "config.json")["config"]["view"]["image_size"]
    images = np.random.default_rng(0).integers(0, 256, (20, size, size, 1), np.uint8)
    network, student = big_distill.load(workdir / file), big_distill.load(workdir)
    assert network.class_names == student.class_names == tuple("0123456789")
    rounds = "int8" in file or (name, file) == ("quantized", "student.tflite")
    np.testing.assert_allclose(network.predict(images), student.predict(images), atol=0.15 if rounds else 1e-5)


@pytest.mark.parametrize("name", FINISHED)
def test_packed_again_it_has_the_same_bytes(name, unpack):
    workdir = unpack(name)
    before, file = read(workdir, "pack.json"), workdir / "student.bdz"
    packed = file.read_bytes()
    pack(workdir, ["container"], "final", "test")
    assert file.read_bytes() == packed
    after = {row["path"]: row for row in read(workdir, "pack.json")}
    assert len(after) == len(before)
    for row in before:
        untimed = {key: value for key, value in row.items() if key not in CLOCKED}
        got = shared(after[row["path"]], untimed)
        assert row == after[row["path"]] or (row["format"] == "container" and not row["precision"])
        if on_its_machine(workdir):
            assert got == untimed


@pytest.mark.full
def test_they_are_reported_on_one_page(unpack):
    runs = [unpack(name) for name in CONFIGS]
    values = report(runs, pathlib.Path("report.html"))
    found = {pathlib.Path(run["workdir"]).name: run for run in values["runs"]}
    assert found.keys() == CONFIGS.keys()
    assert not [line for run in values["runs"] for line in (*run["problems"], *run["warnings"])]
    for name in FINISHED:
        summary = read(pathlib.Path("runs", name), "summary.json")
        assert found[name]["status"] == "finished" and found[name]["fingerprint"] == summary["config_fingerprint"]
        accuracy = found[name]["student"]["accuracy"]
        assert accuracy == summary["student"]["accuracy"]
        assert found[name]["comparison"]["student"]["accuracy"] == close_to(pathlib.Path("runs", name), accuracy)
    assert (found["interrupted"]["status"], found["interrupted"]["step"]) == ("interrupted", 6)
    assert sum(len(group["files"]) for group in values["packed"]) == sum(map(len, PACKED.values()))
    page = pathlib.Path("report.html").read_text()
    assert not [run["name"] for run in values["runs"] if run["name"] not in page]


@pytest.mark.full
def test_a_run_and_its_file_are_teachers_of_a_new_one(unpack):
    student = unpack("distilled")
    config = load_config(HERE / "digits.py", "run=distilled")
    config.teacher.path = f"{student},{student / 'student.bdz'}"
    config.total_steps, config.optimizer.warmup_steps = 2, 0
    summary = train_and_evaluate(resolve(config, 1, jax.default_backend()), pathlib.Path("runs", "new"))
    wanted = read(student, "summary.json")["student"]
    assert summary["teacher"]["num_params"] == 2 * wanted["num_params"]
    assert summary["teacher"]["accuracy"] == close_to(student, wanted["accuracy"])

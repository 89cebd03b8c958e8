"""Run directories in any state: whatever is there is read, whatever is not is one line."""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from edits import edit
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import json_mutations

from big_distill.errors import RunError
from big_distill.reporting.build import report
from big_distill.reporting.records import read, read_all, runs_of, thinned

pytestmark = pytest.mark.xdist_group("report")


def test_a_finished_run(run):
    found = read(run)
    assert (found.status, found.step, found.problems) == ("finished", 120, ())
    assert found.score("accuracy") == found.summary["student"]["accuracy"]
    steps, values = found.series("train/loss")
    assert steps.tolist() == list(range(10, 121, 10)) and (values > 0).all()
    assert [(who, own.step) for who, own in runs_of(found)] == [("student", 120), ("teacher", 120)]
    assert found.teacher_model == "cnn, features 8-16" and found.teacher.teacher_model is None
    assert len(found.packed) == 3 and found.sessions[0]["step"] == 0


def test_teachers_by_path(run, tmp_path, monkeypatch):
    """In words where a run directory tells; a first stage's is that of the second, not of the directory one is in."""
    student, first = tmp_path / "student", run / "init"
    for workdir, path in ((student, f"{run}, {run}/student.npz"), (first, "teacher")):
        shutil.copytree(run / "teacher", workdir)
        edit(workdir / "config.json", lambda saved, path=path: saved["config"]["teacher"].update(path=path))
    assert read(student).teacher_model == "cnn, features 4-8 + student.npz"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "teacher")
    assert read(first).teacher_model == "cnn, features 8-16"


def test_only_what_can_be_drawn_is_drawn(run):
    values = [
        (3, "Infinity"),
        (4, "NaN"),
        (5, "true"),
        (0, "1"),
        (-1, "1"),
        (10**400, "1"),
        (7, "1" + "0" * 400),
        (8, "2"),
        (9, "1e308"),
    ]
    lines = [f'{{"step": {step}, "train/loss": {value}}}\n' for step, value in values]
    (run / "metrics.jsonl").write_text("".join(lines))
    steps, losses = read(run).series("train/loss")
    assert (steps.tolist(), losses.tolist()) == ([8], [2])
    edit(run / "pack.json", lambda rows: rows[:2])
    for change in ({"bytes": 0}, {"bytes": 10**400}, {"latency_ms": float("inf")}, {"latency_ms": -1.0}):
        edit(run / "pack.json", lambda rows, change=change: [{**rows[1], "format": "container"} | change, rows[1]])
        assert [row["format"] for row in read(run).packed] == ["safetensors"]


def test_long_curves_are_thinned():
    """Evenly on a logarithmic axis, and they begin and end where they did."""
    steps = np.arange(1.0, 100_001)
    x, y = thinned(steps, 2 * steps)
    assert 100 < len(x) <= 202 and (x[0], x[-1]) == (1, 100_000)
    assert (y == 2 * x).all() and (np.diff(x) > 0).all()
    assert np.diff(np.log(x[x > 100])).max() < 0.1
    assert len(thinned(steps[:200], steps[:200])[0]) == 200


def test_every_state_has_its_word(run, finished, tmp_path):
    (run / "summary.json").unlink()
    found = read(run)
    assert (found.status, found.step) == ("interrupted", 120) and found.readable
    (run / "metrics.jsonl").unlink()
    assert read(run).status == "new"
    shutil.copytree(finished / "checkpoints" / "80", run / "checkpoints" / "80")
    assert (read(run).status, read(run).step) == ("interrupted", 80)
    for path in (tmp_path, tmp_path / "none", run / "config.json"):
        empty = read(path)
        assert empty.status == "empty" and not empty.readable and len(empty.problems) == 1


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl", "pack.json", "environment.json"])
def test_a_damaged_file_costs_what_was_in_it(run, name):
    (run / name).write_bytes(b'{"half": \n\n')
    found = read(run)
    assert found.status == "damaged" and found.readable
    (line,) = found.problems
    assert str(run / name) in line and "\n" not in line
    (run / "teacher" / name).write_bytes(b'{"half": \n\n')
    assert len(read(run).problems) == 2, "its teacher's is told, too"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"wall_seconds": -5.0}, "wall_seconds is -5.0"),
        ({"kl": -7.0}, "kl is -7.0"),
        ({"agreement": 1.5}, "agreement is 1.5"),
        ({"student": {"accuracy": 7.0, "num_params": 10**400}}, "student.accuracy is 7.0, student.num_params is 1000"),
    ],
)
def test_numbers_that_cannot_be(run, change, line):
    edit(run / "summary.json", lambda summary: summary | change)
    found = read(run)
    assert (found.status, found.summary) == ("damaged", None)
    (told,) = found.problems
    assert line in told and len(told) < 400


def test_rows_left_out_are_told(run):
    edit(run / "pack.json", lambda rows: [rows[0] | {"accuracy": 2.0}, rows[1] | {"bytes": -1}, *rows[2:]])
    found = read(run)
    assert len(found.packed) == 1 and "2 of 3 rows left out" in found.problems[0]


def test_a_directory_that_cannot_be_read(run, tmp_path):
    long = tmp_path / ("n" * 300)  # as the file system says of any name: this one for root, too
    unreadable, found = read_all([long, run])
    assert (unreadable.status, found.status) == ("unreadable", "finished")
    assert "cannot be read: File name too long" in unreadable.problems[0]


def test_each_directory_once(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    paths = [run, tmp_path / "none", run / "..", tmp_path / "link", run]
    assert [record.workdir for record in read_all(paths)] == [run, tmp_path / "none", run / ".."]
    with pytest.raises(RunError, match=r"no run to report on: .*none is not a directory; .* holds no run"):
        read_all([tmp_path / "none", tmp_path])


@pytest.mark.parametrize(
    ("change", "told"),
    [({"batch_size": 0}, "config.batch_size=0: expected at least 1"),
     ({"accumulate_steps": 0}, "config.accumulate_steps=0: expected at least 1"),
     ({"num_classes": -1}, "config.num_classes=-1: expected at least 2")],
)  # fmt: skip
def test_a_config_of_what_cannot_be(run, change, told):
    edit(run / "config.json", lambda saved: saved["config"].update(change))
    found = read(run)
    assert found.config is None and found.status == "damaged" and told in found.problems[0]


FILES = ("config.json", "summary.json", "pack.json", "environment.json", "metrics.jsonl")


@settings(max_examples=30)
@given(data=st.data())
def test_fuzzed_files_make_a_page(finished, tmp_path_factory, data):
    """With numbers that are not finite, names of one letter, lists where values should be; students are run, too."""
    workdir = tmp_path_factory.mktemp("fuzzed") / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("checkpoints", "events.*", "teacher"))
    name = data.draw(st.sampled_from(FILES))
    text = (finished / name).read_text()
    values = list(map(json.loads, text.splitlines())) if name == "metrics.jsonl" else json.loads(text)
    changed = data.draw(json_mutations(values))
    lines = changed if name == "metrics.jsonl" and isinstance(changed, list) else [changed]
    (workdir / name).write_text("\n".join(map(json.dumps, lines)))
    out = workdir.parent / "report.html"
    try:
        values = report([workdir], out, num_examples=1, figures_dir=workdir.parent / "figures")
    except RunError as error:
        assert str(error).startswith("no run to report on") and str(error).isprintable()
    else:
        assert all(line.isprintable() for line in values["runs"][0]["problems"] + values["runs"][0]["warnings"])
        for path in (workdir.parent / "figures").iterdir():
            ElementTree.fromstring(path.read_text())
        assert "</html>" in out.read_text() and len(out.with_suffix(".md").read_text().splitlines()) == 3

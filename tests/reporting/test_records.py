"""Checks the reading of run directories in any state: what is there is read, what is missing gives one line."""

import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from edits import damaged, edit
from hypothesis import given, settings
from hypothesis import strategies as st

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
    """A run directory is named by its model. A first stage's teacher is the second stage's, not that of the cwd."""
    student, first = tmp_path / "student", run / "init"
    for workdir, path in ((student, f"{run}, {run}/student.npz"), (first, "teacher")):
        shutil.copytree(run / "teacher", workdir)
        edit(workdir / "config.json", lambda saved, path=path: saved["config"]["teacher"].update(path=path))
    assert read(student).teacher_model == "cnn, features 4-8 + student.npz"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "teacher")
    assert read(first).teacher_model == "cnn, features 8-16"


def test_what_is_no_number_is_not_drawn(run):
    values = [(3, "Infinity"), (4, "NaN"), (5, "null"), (6, '"much"'), (8, "2")]
    lines = [f'{{"step": {step}, "train/loss": {value}}}\n' for step, value in values]
    (run / "metrics.jsonl").write_text("".join([*lines, '{"step": 9}\n']))
    steps, losses = read(run).series("train/loss")
    assert (steps.tolist(), losses.tolist()) == ([8], [2])


def test_long_curves_are_thinned():
    """Curves are thinned evenly on a logarithmic axis, and keep their first and last point."""
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
    ("name", "change", "told"),
    [
        ("summary.json", lambda summary: summary.pop("kl") and summary, "it has no 'kl'"),
        ("summary.json", lambda summary: summary | {"student": [1]}, "its 'student' is [1]"),
        ("pack.json", lambda rows: [*rows, {"path": "a.bdz"}], "an item of it has no 'format'"),
        ("environment.json", lambda sessions: sessions[0], "it is {"),
    ],
)
def test_a_file_of_another_form(run, name, change, told):
    edit(run / name, change)
    found = read(run)
    assert found.status == "damaged" and found.readable
    (line,) = found.problems
    assert str(run / name) in line and told in line


def test_a_directory_that_cannot_be_read(run, tmp_path):
    long = tmp_path / ("n" * 300)  # too long for the file system, also for root
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


@pytest.mark.full
@settings(max_examples=settings().max_examples // 6)  # each makes a page
@given(data=st.data())
def test_damaged_files_make_a_page(finished, tmp_path_factory, data):
    """Files are cut short, or a value is gone or of another type; students are evaluated, too."""
    workdir = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("checkpoints", "events.*", "teacher"))
    name = data.draw(st.sampled_from(FILES))
    (workdir / name).write_text(data.draw(damaged((finished / name).read_text())))
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

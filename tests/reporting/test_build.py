"""Checks reports of run directories of every kind: what is there makes a page, what is missing has its line."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from edits import edit, with_names
from pages import check

from big_distill import weights
from big_distill.errors import ConfigError, RunError
from big_distill.reporting import build
from big_distill.reporting.build import report

pytestmark = pytest.mark.xdist_group("report")


@pytest.mark.full
def test_what_there_is_of_broken_runs(run, tmp_path, capsys):
    """Each has one line, on the terminal and on the page."""
    stopped, damaged, empty = tmp_path / "stopped", tmp_path / "damaged", tmp_path / "empty"
    alone = run / "teacher"
    shutil.copytree(run, stopped)
    (stopped / "summary.json").unlink()
    shutil.copytree(run, damaged)
    (damaged / "metrics.jsonl").write_text("{\n{\n")
    (damaged / "pack.json").unlink()
    empty.mkdir()
    values = report([stopped, damaged, empty, tmp_path / "none", alone], tmp_path / "report.html", num_examples=2)
    page, told = check(tmp_path / "report.html"), capsys.readouterr().out
    assert [run["status"] for run in values["runs"]] == ["interrupted", "damaged", "empty", "empty", "finished"]
    for line in (
        f"{damaged / 'metrics.jsonl'}, line 1 is damaged",
        f"{empty} holds no run: it has no config.json",
        f"{tmp_path / 'none'} is not a directory",
        "stopped: not compared with a teacher: it is not finished",
        "teacher: trained without a teacher: there is none to compare with",
        "damaged; run/teacher: no pack.json",
    ):
        assert told.count(line) == 1, line
    for line in ("line 1 is damaged", "holds no run", "is not a directory", "it is not finished", "are not packed"):
        assert line in page.text, line
    assert "there is none to compare with" in page.text and "(interrupted at step 120 of 120)" in page.text
    assert values["runs"][1]["comparison"]["classes"], "what is not damaged is shown"
    table = (tmp_path / "report.md").read_text()
    assert "interrupted at step 120 of 120" in table and "none (empty)" in table


def undrawn(run):
    """Removes a run's curves, which take time to draw."""
    shutil.rmtree(run / "teacher")
    (run / "metrics.jsonl").unlink()


@pytest.mark.full
def test_files_that_do_not_belong_together(run, tmp_path):
    """Each such file has its line; weights that are not those of the summary are not compared."""
    undrawn(run)
    summary = json.loads((run / "summary.json").read_text())
    edit(run / "summary.json", lambda summary: summary | {"config_fingerprint": "0" * 12})
    arrays = dict(np.load(run / "student.npz"))
    first = next(name for name, array in arrays.items() if array.dtype == np.float32 and array.size > 1)
    np.savez(run / "student.npz", **(arrays | {first: arrays[first] + 1}))
    values = report([run], tmp_path / "report.html", num_examples=2)["runs"][0]
    (problem,) = values["problems"]
    assert re.search(r"summary.json is not of this config: it has fingerprint 0{12}, the config \w{12}", problem)
    assert values["comparison"] is None and values["status"] == "finished"
    (warning,) = values["warnings"]
    assert "does not hold the weights that summary.json has the hash of" in warning
    assert warning in check(tmp_path / "report.html").text.split("What was run")[1], "at the top"
    (run / "student.npz").unlink()
    values = report([run], tmp_path / "report.html", num_examples=2)["runs"][0]
    assert values["student"]["accuracy"] == summary["student"]["accuracy"]
    assert any("its weights are missing" in line for line in values["problems"])


@pytest.mark.full
def test_what_the_files_contradict(run, tmp_path):
    """The summary's accuracy is not that of the weights, and a size is not that of the file."""
    undrawn(run)
    measured = f"{100 * json.loads((run / 'summary.json').read_text())['student']['accuracy']:.2f} %"
    edit(run / "summary.json", lambda summary: summary["student"].update(accuracy=0.123))
    edit(run / "pack.json", lambda rows: rows[0].update(bytes=1))
    (values,) = report([run], tmp_path / "report.html", num_examples=0)["runs"]
    assert values["warnings"][-1] == f"its summary says 12.30 % of test, its weights have {measured}"
    (problem,) = values["problems"]
    assert "pack.json: bytes is 1 of student.bdz, which has" in problem


@pytest.mark.full
def test_scores_that_were_not_measured(run, tmp_path):
    """Null, or NaN where no image could be read, is a dash on the page and nothing in the figures."""
    undrawn(run)
    edit(run / "summary.json", lambda summary: summary["student"].update(accuracy=float("nan")))
    edit(run / "summary.json", lambda summary: summary | {"agreement": None, "kl": float("nan")})
    edit(run / "pack.json", lambda rows: [{**row, "accuracy": float("nan"), "agreement": None} for row in rows])
    values = report([run], tmp_path / "report.html", compare=False, figures_dir=tmp_path / "figures")
    (own,) = values["runs"]
    assert (own["student"]["accuracy"], own["agreement"], own["kl"], own["problems"]) == (None, None, None, [])
    assert [file["accuracy"] for file in values["packed"][0]["files"]] == [None] * 3
    assert "nan" not in check(tmp_path / "report.html").text.lower().split()
    assert "No accuracy was measured" in (tmp_path / "report.html").read_text() and not list(
        (tmp_path / "figures").iterdir()
    )


def test_answers_that_are_no_numbers(run, tmp_path):
    (run / "metrics.jsonl").unlink()
    arrays = dict(np.load(run / "student.npz"))
    ruined = {k: np.full_like(v, np.nan) if v.dtype == np.float32 else v for k, v in arrays.items()}
    np.savez(run / "student.npz", **ruined)
    sha = weights.sha256(weights.load(run).variables["params"])
    edit(run / "summary.json", lambda summary: summary | {"params_sha256": sha})
    values = report([run], tmp_path / "report.html", num_examples=2)["runs"][0]
    assert values["comparison"] is None
    (warning,) = values["warnings"]
    assert "its student's answers are not finite on 397 of 397 images of test" in warning
    assert "nan" not in check(tmp_path / "report.html").text.lower().split()


@pytest.mark.full
def test_a_teacher_inside_an_unfinished_run(run, tmp_path):
    teacher = json.loads((run / "teacher" / "summary.json").read_text())["student"]
    (run / "summary.json").unlink()
    shutil.move(run / "pack.json", run / "teacher" / "pack.json")
    values = report([run], tmp_path / "report.html", compare=False, figures_dir=tmp_path / "figures")
    own = values["runs"][0]
    assert (own["teacher"]["accuracy"], own["teacher"]["num_params"]) == (teacher["accuracy"], teacher["num_params"])
    assert {file["run"] for file in values["packed"][0]["files"]} == {"run, teacher"}
    assert own["student"]["accuracy"] is None and own["student"]["last"]["step"] == 120
    shown = f"{100 * own['student']['last']['accuracy']:.2f} % at step 120"
    assert shown in check(tmp_path / "report.html").text and shown in (tmp_path / "report.md").read_text()
    assert "teacher, at its end" in (tmp_path / "figures" / "run1_accuracy.svg").read_text()


@pytest.mark.full
def test_latencies_of_different_machines_are_not_compared(run, tmp_path):
    """Each machine has its front and its figure; an unknown one has none."""
    undrawn(run)
    other = tmp_path / "other"
    rows = json.loads((run / "pack.json").read_text())
    slow, fast = (
        [{**rows[0], "latency_ms": factor * (1.0 + i), "accuracy": 0.5 + 0.1 * i, "machine": machine} for i in range(2)]
        for factor, machine in ((100, "snail"), (1, "hare"))
    )
    (run / "pack.json").write_text(json.dumps(slow))
    shutil.copytree(run, other)
    for packed, drawn in ((fast, {"latency1", "latency2"}), (slow, {"latency"})):
        (other / "pack.json").write_text(json.dumps(packed))
        figures = tmp_path / f"figures{len(drawn)}"
        (group,) = report([run, other], tmp_path / "report.html", compare=False, figures_dir=figures)["packed"]
        assert {path.stem.removeprefix("packed1_") for path in figures.iterdir()} == drawn | {"bytes"}
        assert all(file["on_latency_front"] for file in group["files"]), "the fast ones beat the slow ones elsewhere"
        check(tmp_path / "report.html")
    for path, packed in ((run, slow), (other, fast)):
        rows = [{key: value for key, value in row.items() if key != "machine"} for row in packed]
        (path / "pack.json").write_text(json.dumps(rows))
    (group,) = report([run, other], tmp_path / "report.html", compare=False, figures_dir=tmp_path / "more")["packed"]
    assert [path.stem for path in (tmp_path / "more").iterdir()] == ["packed1_bytes"]
    assert not any(file["on_latency_front"] for file in group["files"])
    assert "because their machine is not known" in check(tmp_path / "report.html").text


@pytest.mark.parametrize("flags", [{"split": "fifth"}, {"data_dir": "/nowhere"}])
def test_a_flag_that_suits_no_run(run, tmp_path, flags):
    if "data_dir" in flags:
        edit(run / "config.json", lambda saved: saved["config"]["source"].update(name="mnist"))
    ((name, value),) = flags.items()
    with pytest.raises(ConfigError, match=f"--{name}={value}: no run can be compared with it: "):
        report([run], tmp_path / "report.html", **flags)
    assert not list(tmp_path.glob("report.*"))


@pytest.mark.full
def test_without_a_split(run, tmp_path):
    edit(run / "config.json", lambda saved: saved["config"]["source"].update(test="", validation=""))
    (line,) = report([run], tmp_path / "report.html")["runs"][0]["warnings"]
    assert "no test split and no validation split: --split says" in line


def test_data_sets_of_one_name(run, tmp_path):
    paths = []
    undrawn(run)
    for parent in ("a", "b"):
        paths.append(tmp_path / parent / "run")
        shutil.copytree(run, paths[-1])
        source = {"name": "folder", "path": f"/data/{parent}/photos"}
        edit(paths[-1] / "config.json", lambda saved, source=source: saved["config"]["source"].update(source))
    values = report(paths, tmp_path / "report.html", compare=False)
    assert [group["dataset"] for group in values["packed"]] == ["/data/a/photos", "/data/b/photos"]


@pytest.mark.full
def test_without_data_at_hand(run, tmp_path, capsys):
    edit(run / "config.json", lambda saved: saved["config"]["source"].update(name="folder", path="/nowhere"))
    edit(run / "summary.json", lambda summary: summary.pop("config_fingerprint") and summary)
    report([run], tmp_path / "report.html")
    page, told = check(tmp_path / "report.html"), capsys.readouterr().out
    assert told.startswith("run: not compared with a teacher: /nowhere cannot be read") and told.count("\n") == 1
    assert "/nowhere cannot be read" in page.text
    report([run], tmp_path / "report.html", compare=False)
    assert not capsys.readouterr().out and "These runs were not compared: run." in check(tmp_path / "report.html").text


@pytest.mark.full
def test_without_labels(run, tmp_path, capsys, monkeypatch):
    with_names(monkeypatch, ())
    (values,) = report([run], tmp_path / "report.html", num_examples=4)["runs"]
    line = "its data have no labels, so its accuracy is not known"
    page = check(tmp_path / "report.html")
    assert line in capsys.readouterr().out and line in page.text
    found = values["comparison"]
    assert found["agreement"] == pytest.approx(values["agreement"]) and 0.1 < found["student"]["confidence"] < 1
    assert len(found["examples"]["differ"]) == 4 == sum(tag == "img" for tag, _ in page.elements)
    assert all(e["truth"] is None and e["student"][0][0] != e["teacher"][0][0] for e in found["examples"]["differ"])
    assert f"Both say the same of {100 * found['agreement']:.2f} %" in page.text


@pytest.mark.parametrize(
    ("lines", "drawn"),
    [
        ([], set()),
        ([{"step": 7, "train/loss": 0.0, "eval/test/accuracy": 0.5}], {"run1_loss", "run1_accuracy"}),
        ([{"step": 1, "train/loss": float("nan")}, {"step": 2, "train/loss": "x"}], set()),
        ([{"step": 3, "train/kl": -1e-9}], {"run1_kl"}),
        (
            [
                {"step": step, "train/loss": 1e-30 * (step * 7919 % 997 + 1), "train/agreement": 1.0}
                for step in range(1, 5000)
            ],
            {"run1_loss", "run1_agreement"},
        ),
    ],
)
def test_strange_metrics_are_drawn_or_left_out(run, tmp_path, lines, drawn):
    shutil.rmtree(run / "teacher")
    (run / "pack.json").unlink()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report([run], tmp_path / "report.html", compare=False, figures_dir=tmp_path / "figures")
    check(tmp_path / "report.html")
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == drawn
    assert all(path.stat().st_size < 60_000 for path in (tmp_path / "figures").iterdir())


def test_what_cannot_be_written(run, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    for out in (tmp_path / "none" / "report.html", run / "config.json" / "report.html"):
        with pytest.raises(RunError, match=r"report.html cannot be written: (No such|Not a)"):
            report([run], out)
    with pytest.raises(RunError, match=r"config.json cannot be written: File exists"):
        report([run], tmp_path / "report.html", figures_dir=run / "config.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    figures = tmp_path / "figures"
    (figures / "run1_loss.svg").mkdir(parents=True)
    with pytest.raises(RunError, match=r"run1_loss.svg cannot be written: it exists and is not a file"):
        report([run], tmp_path / "report.html", figures_dir=figures)
    os.mkfifo(tmp_path / "pipe.html")
    with pytest.raises(RunError, match=r"pipe.html cannot be written: it exists and is not a file"):
        report([run], tmp_path / "pipe.html")


def test_of_many_runs_each_has_its_row_alone(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(build, "_MOST_DRAWN", 1)
    shutil.copytree(run, tmp_path / "other")
    values = report(
        [run, tmp_path / "other"], tmp_path / "report.html", num_examples=1, figures_dir=tmp_path / "figures"
    )
    assert [own["comparison"] for own in values["runs"]] == [None, None]
    assert not list((tmp_path / "figures").glob("run*")) and list((tmp_path / "figures").glob("together*"))
    assert "not drawn" in check(tmp_path / "report.html").text and "2 runs: each is drawn" in capsys.readouterr().out
    assert values["runs"][0]["curves"]["student"]


def test_no_other_file_is_lost(run, tmp_path):
    """A report does not overwrite a file of a run or of the user; it overwrites an earlier report."""
    undrawn(run)
    (tmp_path / "notes.md").write_text("mine")
    (run / "summary.json").rename(tmp_path / "kept.json")
    for out, lost in (
        (run / "pack.html", "pack.json"),
        (run / "summary.html", "summary.json"),
        (tmp_path / "notes.html", "notes.md"),
        (tmp_path / "kept.html", "kept.json"),
    ):
        with pytest.raises(ConfigError, match=rf"{lost} beside it is not of a report and would be lost"):
            report([run], out, compare=False)
        assert not out.exists()
    for _ in range(2):
        report([run], run / "report.html", compare=False)

"""The page: one file, well formed, that needs no other and runs nothing that a run directory says."""

import dataclasses
import html.parser
import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree

import numpy as np
import pytest
from edits import edit

from big_distill import evaluation, weights
from big_distill.errors import ConfigError, RunError
from big_distill.reporting import build, svg
from big_distill.reporting.build import report
from big_distill.reporting.page import _extremes

pytestmark = pytest.mark.xdist_group("report")

WORDS = ("aria-label", "alt")
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """Its elements; fails where one is not closed, or another one is."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def check(path):
    """What holds of every page."""
    text = path.read_text()
    page = Page(text)
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.elements:
        assert tag not in ("script", "iframe", "object", "base") and not any(name.startswith("on") for name in attrs)
        for name in ("src", "href", "xlink:href", "action"):
            target = attrs.get(name, "#runs")
            assert target.startswith(("data:image/png;base64,", "data:,", "#")), target
            assert not target.startswith("#") or target[1:] in ids, target
    values = (value or "" for _, attrs in page.elements for name, value in attrs.items() if name not in WORDS)
    looks = " ".join([*values, text[text.index("<style>") : text.index("</style>")]])
    for target in re.findall(r"url\(([^)]*)\)", looks):
        assert target.startswith("#") and target[1:] in ids, target
    assert "@import" not in text
    assert not re.search(r"#0\d0a0a|#010101|#020202", looks), "a colour that is not the page's"
    assert all(attrs.get("aria-label") for tag, attrs in page.elements if tag == "svg")
    return page


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    """The page of one finished run, and what it says."""
    out = tmp_path_factory.mktemp("page") / "report.html"
    return out, report([finished], out, num_examples=3, figures_dir=out.parent / "figures")


def test_the_page_is_whole_and_says_what_the_files_say(made, finished):
    out, values = made
    page = check(out)
    assert json.loads(out.with_suffix(".json").read_text()) == values
    (run,) = values["runs"]
    summary = json.loads((finished / "summary.json").read_text())
    assert (run["student"]["accuracy"], run["kl"]) == (summary["student"]["accuracy"], summary["kl"])
    assert run["comparison"]["student"]["accuracy"] == pytest.approx(summary["student"]["accuracy"])
    assert run["comparison"]["teacher"]["accuracy"] == pytest.approx(summary["teacher"]["accuracy"])
    for shown in (
        f"{100 * summary['student']['accuracy']:.2f} %", "cnn, features 4-8", "cnn, features 8-16", run["fingerprint"],
        "jax", *(file["file"] for file in values["packed"][0]["files"]),
    ):  # fmt: skip
        assert shown in page.text, shown
    (teacher,) = values["packed"][0]["teachers"]
    assert teacher["bytes"] == 4 * summary["teacher"]["num_params"] and f"{teacher['bytes']:,} bytes" in page.text
    pictures = sum(tag == "img" for tag, _ in page.elements)
    assert pictures == sum(len(kind) for kind in run["comparison"]["examples"].values()) > 0
    table = out.with_suffix(".md").read_text().splitlines()
    assert len(table) == 3 and len({line.count("|") for line in table}) == 1
    assert run["curves"]["teacher"]["train/loss"]["steps"][-1] == 120
    teachers = json.loads((finished / "teacher" / "summary.json").read_text())
    speed = run["throughput"]["teacher"]
    assert (speed["images_per_second"], speed["wall_seconds"]) == (
        teachers["images_per_second"], teachers["wall_seconds"],
    )  # fmt: skip


def test_the_surest_losses_come_first():
    def score(name, lost, won, p_value):
        return {"name": name, "lost": lost, "won": won, "difference": (won - lost) / 50, "p_value": p_value}

    found = _extremes(
        [score("a", 1, 0, 1), score("b", 16, 0, 3e-5), score("c", 30, 13, 0.01), score("d", 3, 3, 1),
         score("e", 0, 2, 0.5), score("f", 2, 0, 1)]
    )  # fmt: skip
    assert [own["name"] for own in found["lost"]] == ["b", "c", "f", "a"]
    assert [own["name"] for own in found["won"]] == ["e"]


def test_figures_stand_alone(made):
    """On white and on dark: no ground of their own, no colour that only a page has; and none is large."""
    files = list((made[0].parent / "figures").iterdir())
    assert len(files) == 4 + 1 + 2 + 2
    for path in files:
        text = path.read_text()
        root = xml.etree.ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("role") == "img"
        assert "var(" not in text and len(text) < 60_000
        used = set(re.findall(r"#[0-9a-f]{6}\b", text))
        assert used <= set(svg._ALONE.values()), used
        assert "DejaVu" not in text and "system-ui" in text


def test_the_same_page_again(made, finished, tmp_path):
    again = report([finished, finished / ".." / finished.name], tmp_path / "report.html", num_examples=3)
    assert again == made[1] and (tmp_path / "report.html").read_bytes() == made[0].read_bytes()


def test_names_are_text(run, tmp_path, monkeypatch):
    """Of directories, classes, files, and what a config says: none becomes markup, mathematics or a colour."""
    names = (r"_<script>alert(0)<script>&$\x$ #010101", r'_<script>&$\x$ url(#q) id="q" font: 8px')
    hostile = [tmp_path / name for name in names]
    edit(run / "pack.json", lambda rows: [{**row, "format": '<i id="runs">', "path": "<b>"} for row in rows])
    for i, path in enumerate(hostile):
        shutil.copytree(run, path)
        start = f"<b onclick=x>{'long' * 20}{i}"
        edit(path / "config.json", lambda saved, start=start: saved["config"].update(init_from=start))
    with_names(monkeypatch, tuple(f"</td><u>{digit}" for digit in range(10)))
    values = report(hostile, tmp_path / "report.html", num_examples=2, figures_dir=tmp_path / "figures")
    page = check(tmp_path / "report.html")
    assert [run["name"] for run in values["runs"]] == [path.name for path in hostile]
    for text in (hostile[1].name, "<b onclick=x>", "</td><u>3"):
        assert text in page.text
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "u", "i"})
    assert "<script" not in (tmp_path / "report.md").read_text()
    together = list((tmp_path / "figures").glob("together_*"))
    assert len(together) == 2
    for path in together:
        texts = [*xml.etree.ElementTree.fromstring(path.read_text()).itertext()]
        assert all(any(run.name in text for text in texts) for run in hostile), "in the legend, as it is"


def with_names(monkeypatch, names):
    """Every split of data from here on has classes of these names, or without any no labels."""
    open_split = evaluation.open_split

    def renamed(*args):
        return dataclasses.replace(open_split(*args), class_names=names, num_classes=len(names) or None)

    monkeypatch.setattr(evaluation, "open_split", renamed)


def test_what_there_is_of_broken_runs(run, tmp_path, capsys):
    """One line each, on the terminal and on the page."""
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
    for line in ("line 1 is damaged", "holds no run", "is not a directory", "it is not finished", "Not packed, which"):
        assert line in page.text, line
    assert "there is none to compare with" in page.text and "(interrupted at step 120 of 120)" in page.text
    assert values["runs"][1]["comparison"]["classes"], "what is not damaged is shown"
    table = (tmp_path / "report.md").read_text()
    assert "interrupted at step 120 of 120" in table and "none (empty)" in table


def undrawn(run):
    """A run without curves, which take their time."""
    shutil.rmtree(run / "teacher")
    (run / "metrics.jsonl").unlink()


def test_files_that_do_not_belong_together(run, tmp_path):
    """Each has its line; weights that are not those of the summary are not compared."""
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


def test_what_the_files_contradict(run, tmp_path):
    """A summary that its weights do not bear out, rates that cannot be, a size that the file has not."""
    undrawn(run)
    measured = f"{100 * json.loads((run / 'summary.json').read_text())['student']['accuracy']:.2f} %"
    edit(run / "summary.json", lambda summary: summary["student"].update(accuracy=0.123))
    edit(run / "summary.json", lambda summary: summary | {"steps": 9_000})
    (run / "metrics.jsonl").write_text('{"step": 1, "eval/test/accuracy": 50.0, "train/kl": -3.0}\n')
    edit(run / "pack.json", lambda rows: rows[0].update(bytes=1))
    (values,) = report([run], tmp_path / "report.html", num_examples=0)["runs"]
    assert values["warnings"][-1] == f"its summary says 12.30 % of test, its weights have {measured}"
    problems = "\n".join(values["problems"])
    assert "it says 9,000 of 120 steps" in problems
    assert "left out what cannot be, such as eval/test/accuracy of 50.0" in problems
    assert "pack.json: bytes is 1 of student.bdz, which has" in problems and len(values["problems"]) == 3
    assert not values["curves"]["student"]["eval/test/accuracy"]["steps"]


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


def test_latencies_of_different_machines_are_not_compared(run, tmp_path):
    """Each machine has its front and its figure; one that is not known has none."""
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
    assert "whose machine is not known, not at all" in check(tmp_path / "report.html").text


@pytest.mark.parametrize("flags", [{"split": "fifth"}, {"data_dir": "/nowhere"}])
def test_a_flag_that_suits_no_run(run, tmp_path, flags):
    if "data_dir" in flags:
        edit(run / "config.json", lambda saved: saved["config"]["source"].update(name="mnist"))
    ((name, value),) = flags.items()
    with pytest.raises(ConfigError, match=f"--{name}={value}: of no run can it be read: "):
        report([run], tmp_path / "report.html", **flags)
    assert not list(tmp_path.glob("report.*"))


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


def test_without_data_at_hand(run, tmp_path, capsys):
    edit(run / "config.json", lambda saved: saved["config"]["source"].update(name="folder", path="/nowhere"))
    edit(run / "summary.json", lambda summary: summary.pop("config_fingerprint") and summary)
    report([run], tmp_path / "report.html")
    page, told = check(tmp_path / "report.html"), capsys.readouterr().out
    assert told.startswith("run: not compared with a teacher: /nowhere cannot be read") and told.count("\n") == 1
    assert "/nowhere cannot be read" in page.text
    report([run], tmp_path / "report.html", compare=False)
    assert not capsys.readouterr().out and "Not looked at: run." in check(tmp_path / "report.html").text


def test_without_labels(run, tmp_path, capsys, monkeypatch):
    with_names(monkeypatch, ())
    (values,) = report([run], tmp_path / "report.html", num_examples=4)["runs"]
    line = "its data have no labels: what is right is not known"
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
        ([{"step": 0, "train/loss": 1.0, "train/images_per_second": 5.0}], set()),
        ([{"step": 7, "train/loss": 0.0, "eval/test/accuracy": 0.5}], {"run1_loss", "run1_accuracy"}),
        ([{"step": -3, "train/loss": 1.0}, {"step": 10**30, "train/loss": 1e300}, {"step": 10**400}], set()),
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


def test_a_sweep(run, tmp_path):
    """The figure of patience: two regimes, two durations, two seeds of one of them."""
    paths = []
    shutil.rmtree(run / "teacher")
    (run / "pack.json").unlink()
    (run / "metrics.jsonl").unlink()
    for number, (regime, steps, seed, accuracy) in enumerate(
        [("fixed", 30, 0, 0.5), ("fixed", 30, 1, 0.7), ("fixed", 300, 0, 0.8), ("independent", 30, 0, 0.6)]
    ):
        paths.append(tmp_path / str(number))
        shutil.copytree(run, paths[-1])
        changes = {"seed": seed, "total_steps": steps, "total_epochs": steps / 30}
        edit(paths[-1] / "config.json", lambda saved, changes=changes: saved["config"].update(changes))
        view = {"regime": regime, "mixup": 0.0}
        edit(paths[-1] / "config.json", lambda saved, view=view: saved["config"]["view"].update(view))
        edit(paths[-1] / "summary.json", lambda summary, score=accuracy: summary["student"].update(accuracy=score))
    values = report(paths[::-1], tmp_path / "report.html", compare=False, figures_dir=tmp_path / "figures")
    assert values["sweep"]["field"] == "total_epochs"
    lines = {line["label"]: line["points"] for line in values["sweep"]["lines"]}
    assert lines["view.regime=fixed"][0]["accuracy"] == pytest.approx(
        {"num_runs": 2, "mean": 0.6, "least": 0.5, "most": 0.7}
    )
    assert [point["num_runs"] for point in lines["view.regime=fixed"]] == [2, 1]
    page = check(tmp_path / "report.html")
    assert "50.00 % to 70.00 %" in page.text and "view.regime=independent" in page.text
    names = [run["name"] for run in values["runs"]]
    assert names == sorted(names, key=lambda name: ("regime=fixed" not in name, "epochs=10," in name, name)), "as lines"
    assert {"sweep_accuracy.svg", "sweep_agreement.svg"} <= {path.name for path in (tmp_path / "figures").iterdir()}


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
    """Neither a run's nor one of the user's; but an earlier report's."""
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


def test_the_command_and_its_mistakes(finished, tmp_path):
    command = [sys.executable, "-m", "big_distill.report"]
    out, comma = tmp_path / "page.html", tmp_path / "other"
    for path in (comma, tmp_path / "a,b"):
        path.symlink_to(finished if path == comma else finished / "teacher")
    done = subprocess.run(
        [*command, f"--workdirs={comma}", f'--workdirs="{tmp_path}/a,b"', f"--out={out}", "--nocompare"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.endswith(f"\n{out}\n"), done.stderr
    assert [run["workdir"] for run in json.loads(out.with_suffix(".json").read_text())["runs"]] == [
        str(comma), f"{tmp_path}/a,b",
    ]  # fmt: skip
    check(out)
    for flags, status, message in (
        (["--workdirs=a\nb"], 2, "a directory whose name has a line break cannot be named"),
        ([], 2, "--workdirs=DIR,DIR,... is needed"),
        ([f"--workdirs={finished}", "--out=page.pdf"], 2, "--out=page.pdf: expected FILE.html"),
        ([f"--workdirs={tmp_path / 'none'}", f"--out={out}"], 4, "no run to report on: "),
    ):
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert done.returncode == status and message in done.stderr and done.stderr.count("\n") == 1


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<!DOCTYPE html><body><iframe id="phone" style="width:360px;height:800px;border:0"></iframe>
<p id="found"></p>
<script>
const phone = document.getElementById("phone");
phone.onload = () => {
  const page = phone.contentDocument.documentElement;
  for (const details of phone.contentDocument.querySelectorAll("details")) details.open = true;
  const wide = [...phone.contentDocument.querySelectorAll("figure, svg, p, h1, h2, .examples *")].filter(
    (element) => element.getBoundingClientRect().right > (element.closest(".examples > div") || page)
      .getBoundingClientRect().right + 1);
  const figures = page.querySelectorAll("svg").length;
  document.getElementById("found").textContent =
    `width ${page.scrollWidth} of ${page.clientWidth}, ${wide.length} of ${figures} too wide`;
};
phone.srcdoc = %s;
</script></body>"""


@pytest.fixture(scope="module")
def long_names(finished, tmp_path_factory):
    """The page of data whose classes have names of 150 letters."""
    out = tmp_path_factory.mktemp("long") / "report.html"
    with pytest.MonkeyPatch.context() as patched:
        with_names(patched, tuple(str(digit) * 150 for digit in range(10)))
        report([finished], out, num_examples=3)
    return out


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_in_a_browser(made, long_names, tmp_path):
    """No error on its console; at the width of a telephone, with all that is folded open, nothing sticks out."""
    wrapper, wide = tmp_path / "wrapper.html", tmp_path / "wide.html"
    for file, page in ((wrapper, made[0]), (wide, long_names)):
        file.write_text(MEASURE % json.dumps(page.read_text()).replace("</", "<\\/"))
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=5000",
        "--hide-scrollbars",
        "--dump-dom",
    ]  # fmt: skip
    for page in (made[0], wrapper, wide):
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
        if page != made[0]:
            (found,) = re.findall(r'<p id="found">(.*?)</p>', done.stdout)
            assert found == "width 360 of 360, 0 of 9 too wide"

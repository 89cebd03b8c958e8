"""Checks the page: one well-formed file that needs no other file and runs nothing from a run directory."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree

import pytest
from edits import edit, with_names
from pages import check

from big_distill.reporting import svg
from big_distill.reporting.build import report
from big_distill.reporting.page import _extremes

pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def made(finished, tmp_path_factory):
    """Makes the page of one finished run, and returns its path and its values."""
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


@pytest.mark.full
def test_figures_stand_alone(made):
    """Figures suit white and dark: they have no background and no colour that only a page has, and they are small."""
    files = list((made[0].parent / "figures").iterdir())
    assert len(files) == 4 + 1 + 2 + 1 + 2
    for path in files:
        text = path.read_text()
        root = xml.etree.ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("role") == "img"
        assert "var(" not in text and len(text) < 60_000
        used = set(re.findall(r"#[0-9a-f]{6}\b", text))
        assert used <= set(svg._ALONE.values()), used
        assert "DejaVu" not in text and "system-ui" in text


@pytest.mark.full
def test_the_same_page_again(made, finished, tmp_path):
    again = report([finished, finished / ".." / finished.name], tmp_path / "report.html", num_examples=3)
    assert again == made[1] and (tmp_path / "report.html").read_bytes() == made[0].read_bytes()


@pytest.mark.full
def test_names_are_text(run, tmp_path, monkeypatch):
    """Names of directories, classes and files, and values of a config never become markup, mathematics or a colour."""
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


def test_a_sweep(run, tmp_path):
    """The figure of patience has two regimes, two durations, and two seeds of one of them."""
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
    """Makes the page of data whose classes have names of 150 letters."""
    out = tmp_path_factory.mktemp("long") / "report.html"
    with pytest.MonkeyPatch.context() as patched:
        with_names(patched, tuple(str(digit) * 150 for digit in range(10)))
        report([finished], out, num_examples=3)
    return out


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_in_a_browser(made, long_names, tmp_path):
    """The console has no error. At a telephone's width, with all folds open, nothing is wider than the page."""
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
        done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
        if page != made[0]:
            (found,) = re.findall(r'<p id="found">(.*?)</p>', done.stdout)
            assert found == "width 360 of 360, 0 of 10 too wide"

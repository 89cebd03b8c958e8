"""Checks that the benchmark program runs, reports all its sections and explains them; ignores what it measures."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def benchmarks(*args):
    env = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}
    command = [sys.executable, "tests/benchmarks", *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.full
def test_every_section_runs(tmp_path):
    done = benchmarks("--tiny", f"--json={tmp_path / 'rows.json'}")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "rows.json").read_text())
    assert report["machine"]["platform"] == "cpu"
    ways = {(row["section"], row["way"]): row for row in report["rows"]}
    assert len(ways) == len(report["rows"]) == len(done.stdout.splitlines()) - 1
    assert {"step", "input", "start", "save"} == {section for section, _ in ways}
    assert all(row["median_values"] > 0 and row["unit"] for row in report["rows"])
    assert ways["step", "uncured"]["median_ratios"] == 1 and ways["step", "plain"]["median_cpu_ratios"] > 0


@pytest.fixture
def program(monkeypatch):
    """Loads the program's module in this process."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    spec = importlib.util.spec_from_file_location("benchmarks", ROOT / "tests" / "benchmarks" / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--only=step,inputs", "--only=step,inputs: 'inputs' is not one of step, input, start, save"),
        ("--repeats=0", "--repeats: '0': expected int from 1 to 1000"),
        ("--repeats=many", "--repeats: 'many': expected int from 1 to 1000"),
        ("--seconds=nan", "--seconds: 'nan': expected float from 0 to 3600"),
        ("--seconds=-1", "--seconds: '-1': expected float from 0 to 3600"),
        ("--json=nowhere/rows.json", "--json: 'nowhere/rows.json': cannot be written: No such file or directory"),
    ],
)
def test_arguments_that_are_wrong(argument, message, program, monkeypatch, capsys):
    monkeypatch.setattr(program, "SECTIONS", dict.fromkeys(program.SECTIONS, lambda _: pytest.fail("measured")))
    with pytest.raises(SystemExit, match="2"):
        program.main([argument])
    assert message in capsys.readouterr().err


def test_what_was_measured_is_kept_when_the_next_block_fails(program, monkeypatch, tmp_path):
    def rows(effort):
        yield program.measure.Row("step", "a", "plain", "images/s", (1.0,))
        raise RuntimeError("no room")

    monkeypatch.setattr(program, "SECTIONS", {"step": rows})
    with pytest.raises(RuntimeError, match="no room"):
        program.main([f"--json={tmp_path / 'rows.json'}"])
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert row["way"] == "plain" and row["median_values"] == 1


def test_the_help_says_what_the_choices_are(program, capsys):
    with pytest.raises(SystemExit, match="0"):
        program.main(["--help"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    said = {line[0]: line[1] for line in lines if len(line) == 2}
    for name in (*program.SECTIONS, *program.train_steps.CASES, *program.train_steps.WAYS):
        assert said.get(name), name
    assert said["c"] == "bit depth=101 -> bit depth=50; 64 px, batch 32"

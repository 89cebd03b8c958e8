"""The benchmark program runs, and says of all its sections what it says of them; what it measures is not looked at."""

import json
import os
import subprocess
import sys

from conftest import ROOT


def benchmarks(*args):
    env = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")}
    command = [sys.executable, "tests/benchmarks", *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


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


def test_what_is_not_a_section_is_refused():
    done = benchmarks("--only=step,inputs")
    assert done.returncode == 2 and "--only=step,inputs: 'inputs' is not one of step, input, start, save" in done.stderr

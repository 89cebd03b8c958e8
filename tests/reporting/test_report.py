"""Checks `python -m big_distill.report`."""

import json
import subprocess
import sys

import pytest
from pages import check

pytestmark = pytest.mark.xdist_group("report")


@pytest.mark.full
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

"""Runs a checkout's launch scripts with stand-ins for the cloud's tools, which note what they are asked for.

Once a machine is added, `gcloud ssh` and `scp` work on a directory that stands for it. There, the environment's Python
exits with the statuses that the test has written for it. `sleep` takes 0.05 s.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
TOOLS = ("gcloud", "kubectl", "xpk", "sbatch", "squeue", "scancel", "scontrol", "srun", "sky", "git", "python3", "sudo",
         "gcsfuse", "mountpoint", "sleep")  # fmt: skip
TOOL = f"""#!{sys.executable} -IS
import json, os, pathlib, shutil, subprocess, sys, tarfile, time
name, home = pathlib.Path(sys.argv[0]).name, pathlib.Path(os.environ["FAKES"])
machine = home / "machine"
if name == "sleep":
    sys.exit(time.sleep(0.05))
with (home / "log").open("a") as log:
    log.write(json.dumps([name, *sys.argv[1:]]) + chr(10))
answers = json.loads((home / "answers").read_text())
for i, (words, status, said) in enumerate(answers):
    if words in " ".join([name, *sys.argv[1:]]):
        (home / "answers").write_text(json.dumps(answers[:i] + answers[i + 1:]))
        print(said, end="")
        sys.exit(status)
if name == "git":
    output = next(a for a in sys.argv if a.startswith("--output=")).partition("=")[2]
    with tarfile.open(output, "w:gz") as tar:
        tar.add("launch")
elif not machine.exists():
    pass
elif "scp" in sys.argv:
    shutil.copy(sys.argv[5], machine)
elif "ssh" in sys.argv:
    command = sys.argv[-1].removeprefix("--command=")
    sys.exit(subprocess.run(["bash", "-c", command], cwd=machine, env=os.environ | {{"HOME": str(machine)}}).returncode)
"""
UV = """#!/bin/sh
mkdir -p .venv/bin && cp "$FAKES/python" .venv/bin/python
"""
PYTHON = f"""#!{sys.executable} -IS
import json, os, pathlib, signal, sys, time
home = pathlib.Path(os.environ["FAKES"])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with (home / "runs").open("a") as log:
    log.write(json.dumps(sys.argv[1:]) + chr(10))
first, *rest = json.loads((home / "statuses").read_text())
(home / "statuses").write_text(json.dumps(rest))
if first is None:
    time.sleep(60)
sys.exit(first)
"""


class Checkout:
    """Holds scripts and tools in a directory of their own."""

    def __init__(self, home):
        self.home = home
        self.root = home / "a checkout"
        shutil.copytree(ROOT / "launch", self.root / "launch")
        (home / "bin").mkdir()
        for name in TOOLS:
            self._program(home / "bin" / name, TOOL)
        self._program(home / "python", PYTHON)
        self.answers([])
        self.statuses([])

    def add_machine(self):
        """Adds a machine that has nothing but uv."""
        (self.home / "machine" / ".local" / "bin").mkdir(parents=True)
        self._program(self.home / "machine" / ".local" / "bin" / "uv", UV)

    def _program(self, path, text):
        path.write_text(text)
        path.chmod(0o755)

    def answers(self, answers):
        """Sets what tools answer: (words of the command, exit status, output), each once."""
        (self.home / "answers").write_text(json.dumps(answers))

    def statuses(self, statuses):
        """Sets the exit statuses of runs, one after the other; a run of None ends only when it is told to."""
        (self.home / "statuses").write_text(json.dumps(statuses))

    def environment(self, tools=True):
        """Returns a process's environment, its PATH with the tools or without any of them."""
        path = f"{self.home / 'bin'}:{os.environ['PATH']}" if tools else os.environ["PATH"]
        own = {
            name: value for name, value in os.environ.items() if name not in ("BIG_DISTILL_VENV", "PYTHON", "EXTRAS")
        }
        return own | {"PATH": path, "FAKES": str(self.home)}

    def bash(self, *words, tools=True, **kwargs):
        """Runs bash in the checkout."""
        command = ["bash", *map(str, words)]
        return subprocess.run(
            command, env=self.environment(tools), cwd=self.root, capture_output=True, text=True, timeout=240, **kwargs
        )

    def asked(self):
        """Returns all that tools were asked for since the last call."""
        return self._lines("log")

    def runs(self):
        """Returns the arguments of all runs since the last call."""
        return self._lines("runs")

    def _lines(self, name):
        path = self.home / name
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

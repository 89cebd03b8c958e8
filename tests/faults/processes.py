"""Runs the commands as a user does, each in a process of its own, and reads what they leave behind."""

import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from big_distill import weights
from big_distill.run_dir.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
HANG_SECONDS = 240  # a process that takes longer hangs, on the busiest machine, too
STAGED = "--config=tests/faults/staged_digits.py"
CLOCK = ("seconds", "train/images_per_second")
CLOCKED = ("wall_seconds", "images_per_second", "resumed_at")  # fields of a summary


def start(*args, module="big_distill.main", **kwargs):
    """Starts a command of the package, or a script, as `start_command` does."""
    return start_command(sys.executable, *([module] if module.endswith(".py") else ["-m", module]), *args, **kwargs)


def start_command(*command, num_devices=1, cwd=ROOT, **env):
    """Starts any command with `num_devices` devices; it shares the tests' compilation cache."""
    cache = {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",  # many run the same programs
        "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", f"count={num_devices}"),
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command)], cwd=cwd, env={**os.environ, **cache, **env}, **pipes)


def finish(process):
    """Waits for a process and returns (exit status, stdout, stderr)."""
    out, err = process.communicate(timeout=HANG_SECONDS)
    return process.returncode, out, err


def run(*args, **kwargs):
    """Runs a command and returns (exit status, stdout, stderr)."""
    return finish(start(*args, **kwargs))


def cluster(*args, num_processes=2, of_each=None, **kwargs):
    """Starts the processes of one run; `of_each` has one argument for each process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = [*args, f"--coordinator={address}", f"--num_processes={num_processes}"]
    own = [[argument] for argument in of_each] if of_each else [[]] * num_processes
    return [start(*common, f"--process_id={i}", *own[i], **kwargs) for i in range(num_processes)]


def wait_for(condition, process, seconds=HANG_SECONDS):
    """Waits until `condition()`; fails if the process ends first."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def saved_steps(workdir):
    """Lists the steps of the checkpoints, rising."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())


def losses(workdir):
    """Lists the loss of every logged step."""
    return [line["train/loss"] for line in read_metrics(workdir) if "train/loss" in line]


def timeless(workdir):
    """Reads the metrics file without the values that depend on the clock."""
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in read_metrics(workdir)]


def state_sha256(workdir, step):
    """Hashes all that a resume restores: parameters, their representation, the optimiser's state, the counters."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        path = workdir.absolute() / "checkpoints" / str(step) / "state"
        args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(path).item_metadata.tree
        )
        return weights.sha256(checkpointer.restore(path, restore_args=args))


def outcome(workdir):
    """Hashes all that an interruption must not change, of a finished run and of the runs inside it."""
    found = {}
    for directory in (workdir, workdir / "teacher", workdir / "init"):
        if directory.is_dir():
            summary = json.loads((directory / "summary.json").read_text())
            found[directory.name if directory != workdir else ""] = {
                "summary": {key: value for key, value in summary.items() if key not in CLOCKED},
                "metrics": hashlib.sha256(json.dumps(timeless(directory)).encode()).hexdigest(),
                "state": state_sha256(directory, saved_steps(directory)[-1]),
            }
    return found

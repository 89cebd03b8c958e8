"""Checks that a run directory has one run: the second refuses, unless the first is dead."""

import fcntl
import json

import processes
import pytest
from processes import STAGED

from big_distill.errors import RunError
from big_distill.resolve import resolve
from big_distill.training.loop import train_and_evaluate


def test_a_directory_that_is_held_refuses(tiny, tmp_path):
    config = resolve(tiny, 1, "cpu")
    with (tmp_path / "run.lock").open("w") as file:
        file.write("process 7 of tpu-0\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="is being trained by process 7 of tpu-0: wait for it, stop it, or choose"):
            train_and_evaluate(config, tmp_path)
    assert train_and_evaluate(config, tmp_path)["steps"] == 6


@pytest.mark.full
def test_the_second_run_refuses(tmp_path):
    command = [f"{STAGED}:stages=teacher", f"--workdir={tmp_path}", "--config.total_steps=100000"]
    first = processes.start(*command)
    processes.wait_for(lambda: processes.saved_steps(tmp_path), first)
    status, out, err = processes.run(*command)
    assert (status, out) == (4, "")
    assert err.startswith(f"big_distill: {tmp_path} is being trained by process {first.pid} of ")
    assert err.count("\n") == 1 and first.poll() is None
    _, out, _ = processes.run(f"--workdir={tmp_path}", "--json", module="big_distill.doctor")
    found = json.loads(out)
    assert found["status"] == "running" and f"process {first.pid} of" in found["outlook"]

    first.kill()
    first.communicate()
    steps = processes.saved_steps(tmp_path)
    third = processes.start(*command)  # the lock died with its process
    processes.wait_for(lambda: processes.saved_steps(tmp_path)[-1] > steps[-1], third)
    third.terminate()
    out, err = third.communicate(timeout=processes.HANG_SECONDS)
    assert third.returncode == 75 and "resumes at step" in out, err

"""Checks that a run directory has one run: the second refuses, unless the first is dead."""

import json

import processes
import pytest
from processes import STAGED


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
    out, err = third.communicate(timeout=processes.HANGS)
    assert third.returncode == 75 and "resumes at step" in out, err

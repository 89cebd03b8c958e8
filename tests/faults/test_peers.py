"""A process that dies takes the others with it, in time: none waits for it for ever."""

import signal
import time

import processes
import pytest
from processes import STAGED

TIMEOUT = 20


@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_leave(tmp_path, victim):
    args = [f"{STAGED}:stages=teacher", f"--workdir={tmp_path}", "--config.total_steps=100000"]
    together = processes.cluster(*args, f"--peer_timeout_seconds={TIMEOUT}")
    processes.wait_for(lambda: len(processes.saved_steps(tmp_path)) > 1, together[0])
    together[victim].kill()
    killed = time.monotonic()
    _, err = together[1 - victim].communicate(timeout=TIMEOUT + 60)
    assert time.monotonic() - killed < TIMEOUT + 30
    lines = err.splitlines()
    if together[1 - victim].returncode == 75:
        assert "Traceback" not in err and "has one of them died? The same commands go on" in lines[-1]
    else:  # JAX was the first to notice
        assert together[1 - victim].returncode == -signal.SIGABRT and "another task died" in err

    steps = processes.saved_steps(tmp_path)
    alone = processes.start(*args)
    processes.wait_for(lambda: processes.saved_steps(tmp_path)[-1] > steps[-1], alone)
    alone.terminate()
    out, err = alone.communicate(timeout=60)
    assert alone.returncode == 75, err
    assert f"resumes at step {steps[-1]:,} of" in out
    assert "goes on on another machine, so not bit-exactly (num_devices: 2 -> 1; num_processes: 2 -> 1)" in out

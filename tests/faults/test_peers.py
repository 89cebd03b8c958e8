"""Checks that the other processes end in time when one dies: none waits without end."""

import processes
import pytest
from processes import STAGED

TIMEOUT = 20


@pytest.mark.full
@pytest.mark.parametrize(
    ("victim", "save_every"), [(0, 5), *(pytest.param(1, every, marks=pytest.mark.slow) for every in (5, 20))]
)
def test_the_others_leave(tmp_path, victim, save_every):
    args = [f"{STAGED}:stages=teacher", f"--workdir={tmp_path}", "--config.total_steps=100000",
            f"--config.checkpoint_every_steps={save_every}"]  # fmt: skip
    together = processes.cluster(*args, f"--peer_timeout_seconds={TIMEOUT}")
    processes.wait_for(lambda: processes.saved_steps(tmp_path), together[0])
    together[victim].kill()
    _, err = together[1 - victim].communicate(timeout=90)  # the flag's default is 100
    assert "could not be saved" not in err
    status = together[1 - victim].returncode
    if status == 75:
        assert "Traceback" not in err and "another process does not answer" in err
    else:  # JAX noticed first, as it often does when process 0 dies; a signal ends it
        assert status < 0

    steps = processes.saved_steps(tmp_path)
    alone = processes.start(*args)
    processes.wait_for(lambda: processes.saved_steps(tmp_path)[-1] > steps[-1], alone)
    alone.terminate()
    out, err = alone.communicate(timeout=processes.HANG_SECONDS)
    assert alone.returncode == 75, err
    assert f"resumes at step {steps[-1]:,} of" in out
    assert "goes on on another machine, so not bit-exactly (num_devices: 2 -> 1; num_processes: 2 -> 1)" in out

"""Checks that a run directory has one run: the second refuses, unless the first is dead."""

import fcntl
import json

import processes
import pytest
from processes import STAGED

from big_distill.errors import DataError, RunError
from big_distill.resolve import resolve
from big_distill.run_dir import lock
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


def test_a_start_that_fails_leaves_nothing(tiny, tmp_path):
    """A directory that was there stays, and in one with other files the lock does, too."""
    tiny.source.num_train_examples = 7
    config = resolve(tiny, 1, "cpu")
    (tmp_path / "old").mkdir()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "note").write_text("mine")
    for workdir in (tmp_path / "new" / "run", tmp_path / "old", tmp_path / "kept"):
        with pytest.raises(DataError, match="num_train_examples=7, but"):
            train_and_evaluate(config, workdir)
    assert not (tmp_path / "new").exists() and not [*(tmp_path / "old").iterdir()]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["note", "run.lock"]


def test_a_lock_that_its_holder_removes_locks_nothing(tmp_path, monkeypatch):
    """A process that opened the file before it was removed makes a new one."""
    flock, taken = fcntl.flock, []

    def after_the_holder_has_left(file, operation):
        flock(file, operation)
        if not taken:
            (tmp_path / "run.lock").unlink()
        taken.append(file)

    monkeypatch.setattr(fcntl, "flock", after_the_holder_has_left)
    with lock._locked(tmp_path):
        monkeypatch.undo()
        assert len(taken) == 2
        with pytest.raises(RunError, match="is being trained by"), lock._locked(tmp_path):
            pass


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

"""Checks that a full or read-only disk gives one line, that nothing is lost, and that the same command goes on."""

import errno
import os
import re
import subprocess
import threading

import processes
import pytest
from processes import STAGED

from big_distill.errors import RunError
from big_distill.files import checksums
from big_distill.resolve import resolve
from big_distill.run_dir import checkpoints, metrics
from big_distill.training.loop import train_and_evaluate

# A checkpoint takes about 700 kB.
COMMAND = [f"{STAGED}:stages=teacher", "--config.student.features=(64,128)", "--config.keep_latest=50",
           "--config.total_steps=120"]  # fmt: skip


def mount(directory, options):
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of 3 MB, if the system allows it."""
    mount(tmp_path, "size=3m")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    status, _, err = processes.run(*COMMAND, f"--workdir={workdir}")
    assert status == 0, err
    return processes.outcome(workdir)


@pytest.mark.full
@pytest.mark.xdist_group("disk")
def test_a_save_that_does_not_fit(whole, disk):
    workdir = disk / "run"
    status, out, err = processes.run(*COMMAND, f"--workdir={workdir}")
    steps = processes.saved_steps(workdir)
    assert status == 4 and "Traceback" not in out + err
    assert re.fullmatch(
        rf"big_distill: the checkpoint of step (\d+) could not be saved in \S+ \(No space left on device\); the newest "
        rf"whole one is step {steps[-1]}\n",
        err,
    )
    found = checkpoints.verify(workdir)
    assert len(found) > 1 and set(found.values()) == {None}
    mount(disk, "remount,size=100m")
    status, out, err = processes.run(*COMMAND, f"--workdir={workdir}")
    assert status == 0 and f"resumes at step {steps[-1]} of" in out, err
    assert processes.outcome(workdir) == whole


def test_a_save_that_fails_in_the_background_is_reported_at_the_next_step(tiny, tmp_path, monkeypatch):
    write, update, steps = checksums.write, metrics.Progress.update, []

    def fails(directory):
        if directory.name.startswith("4."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(directory)

    def waits_for_the_save(self, step):
        update(self, step)
        steps.append(step)
        for thread in threading.enumerate():
            if thread.name == "save_finalize":
                threading.Thread.join(thread)  # its own would raise here

    monkeypatch.setattr(checksums, "write", fails)
    monkeypatch.setattr(metrics.Progress, "update", waits_for_the_save)
    tiny.total_steps, tiny.eval_every_steps = 40, 20
    tiny.checkpoint_every_steps = 2
    with pytest.raises(RunError, match=r"step 4 could not be saved .*No space left .*the newest whole one is step 2"):
        train_and_evaluate(resolve(tiny, 1, "cpu"), tmp_path)
    assert steps == [1, 2, 3, 4, 5]


def test_a_write_that_ends_after_its_save_has_failed():
    status, _, err = processes.run(module="tests/faults/late_write.py")
    assert (status, err) == (4, "big_distill: the disk is full\n")


def fill(disk):
    with pytest.raises(OSError), (disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(1000))
            filler.flush()


@pytest.mark.full
@pytest.mark.xdist_group("disk")
def test_metrics_that_do_not_fit(whole, disk):
    workdir, command = disk / "run", [*COMMAND, "--config.checkpoint_every_steps=60"]
    process = processes.start(*command, f"--workdir={workdir}")
    processes.wait_for(lambda: processes.saved_steps(workdir), process)
    fill(disk)
    _, err = process.communicate(timeout=processes.HANG_SECONDS)
    assert process.returncode == 4 and "Traceback" not in err
    assert re.fullmatch(r"big_distill: the metrics in \S+ cannot be written: No space left on device\n", err)
    (disk / "filler").unlink()
    status, out, err = processes.run(*command, f"--workdir={workdir}")
    assert status == 0 and "resumes at step 60 of" in out, err
    assert processes.outcome(workdir)[""]["metrics"] == whole[""]["metrics"]


@pytest.mark.full
@pytest.mark.xdist_group("disk")
def test_the_one_of_two_processes_that_writes(disk):
    """The writer leaves with its line and its status, and does not wait for the other process, which cannot go on."""
    args = [*COMMAND, f"--workdir={disk / 'run'}", "--config.total_steps=100000", "--config.checkpoint_every_steps=60"]
    together = processes.cluster(*args, "--peer_timeout_seconds=20")
    processes.wait_for(lambda: processes.saved_steps(disk / "run"), together[0])
    fill(disk)
    (_, err), _ = (process.communicate(timeout=90) for process in together)  # the flag's default is 100
    assert together[0].returncode == 4 and "Traceback" not in err
    assert "the metrics in" in err and "No space left on device" in err
    assert together[1].returncode == 75 or together[1].returncode < 0  # JAX may be the first to notice, and abort


@pytest.mark.xdist_group("disk")
def test_a_run_directory_that_is_read_only(disk):
    mount(disk, "remount,ro")
    status, out, err = processes.run(*COMMAND, f"--workdir={disk / 'run'}")
    assert (status, out) == (4, "")
    assert re.fullmatch(r"big_distill: run directory \S+ cannot be written: .*Read-only file system: .*\n", err)

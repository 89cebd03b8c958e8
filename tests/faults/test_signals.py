"""Checks that SIGTERM and SIGINT save and set their own status, that a second changes nothing, and the grace."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import processes
import pytest
from processes import STAGED

from big_distill.errors import Preempted
from big_distill.training.preemption import Preemption

MOMENTS = [
    ("TERM,TERM", "", "open", 1, 1, "stopped by SIGTERM, with nothing to save"),
    ("INT,INT", "teacher", "step", 9, 1, "saved and stopped at step"),
    ("TERM,INT", "teacher", "evaluate", 2, 0, "saved and stopped at step"),
    ("TERM", "student's init", "save", 2, 3, "saved and stopped at step"),
    ("INT", "", "open", 2, 1, "stopped by SIGINT, with nothing to save"),
    ("TERM,TERM,TERM", "student", "step", 9, 0, "saved and stopped at step"),
]


@pytest.mark.full
@pytest.mark.xdist_group("whole staged run")
def test_signals_save_and_leave(whole, tmp_path):
    for *moment, message in MOMENTS:
        status, out, err = processes.run(*moment, STAGED, f"--workdir={tmp_path}", module="tests/faults/struck.py")
        assert (status, message in err) == (75, True), f"{moment}: {status} {out}{err}"
        assert "Traceback" not in err and err.count("finishing the step") <= 1
        if "evaluate" in moment:  # the evaluation was given up: no step began after it
            assert int(re.search(r"stopped at step (\d+)", err)[1]) % 7 == 0
    status, _, err = processes.run(STAGED, f"--workdir={tmp_path}")
    assert status == 0, err
    got, want = processes.outcome(tmp_path), processes.outcome(whole)
    for stage in (*got.values(), *want.values()):
        stage["summary"].pop("best_step")  # unknown if a step had no time for its evaluation
    assert got == want


@pytest.mark.full
def test_a_step_that_outlasts_the_grace_is_lost(tmp_path):
    args = [STAGED, f"--workdir={tmp_path}", "--config.grace_seconds=1"]
    status, _, err = processes.run("TERM", "teacher", "hang", 8, 1, *args, module="tests/faults/struck.py")
    assert status == 75
    assert "not saved within config.grace_seconds=1; the same command goes on from the checkpoint before" in err
    assert processes.saved_steps(tmp_path / "teacher") == [5]


@pytest.mark.full
@pytest.mark.parametrize(
    ("names", "num_processes"), [(["TERM"], 1), (["TERM", "TERM"], 2), pytest.param(["INT"], 2, marks=pytest.mark.slow)]
)
def test_processes_save_the_same_step(tmp_path, names, num_processes):
    """One process gets the signal and all stop, with `jax.distributed`, which has its own handler."""
    args = [f"{STAGED}:stages=teacher", f"--workdir={tmp_path}", "--config.total_steps=100000"]
    together = processes.cluster(*args, num_processes=num_processes)
    processes.wait_for(lambda: len(processes.losses(tmp_path)) > 3, together[0])
    assert_all_stop(together, names, tmp_path)


@pytest.mark.full
def test_processes_stop_soon_in_the_next_stage_too(tmp_path):
    """Processes agree on the next time that they all ask, not on a number of steps: that starts anew in every stage."""
    lengths = ["--config.teacher.config.total_steps=120", "--config.init_config.total_steps=100000"]
    together = processes.cluster(STAGED, f"--workdir={tmp_path}", *lengths)
    processes.wait_for((tmp_path / "teacher" / "summary.json").exists, together[0])
    assert_all_stop(together, ["TERM"], tmp_path / "init")
    assert processes.saved_steps(tmp_path / "init")[-1] < 100  # the teacher made 120


def assert_all_stop(together, names, workdir):
    for name in names:
        together[-1].send_signal(signal.Signals[f"SIG{name}"])
    outputs = [process.communicate(timeout=processes.HANG_SECONDS) for process in together]
    assert [process.returncode for process in together] == [75] * len(together), outputs
    step = processes.saved_steps(workdir)[-1]
    assert all(f"saved and stopped at step {step:,} of" in err for _, err in outputs), outputs
    assert len(processes.losses(workdir)) == step
    meta = json.loads((workdir / "checkpoints" / str(step) / "meta" / "metadata").read_text())
    assert meta["machine"]["num_processes"] == len(together)


def test_nothing_of_it_remains():
    """A process that catches `Preempted`, as a notebook does, is not ended by the grace of a run that is over."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for _ in range(50):
        with pytest.raises(Preempted), Preemption(grace_seconds=0.2):
            signal.raise_signal(signal.SIGTERM)
    time.sleep(0.5)  # a timer would have ended this process in this time
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


def test_a_signal_that_a_library_swallowed_stops_the_loop_before_its_first_step():
    with pytest.raises(Preempted, match="stopped by SIGINT, with nothing to save"), Preemption(0) as preemption:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        with preemption.deferred():
            pytest.fail("trains")


def test_a_signal_that_a_library_swallowed_after_the_loop_changes_nothing():
    with Preemption(0) as preemption:
        with preemption.deferred():
            pass
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
    assert preemption.requested  # read before another stage begins


SWALLOWS = """
import os, signal, sys, time
from big_distill import cli
from big_distill.training import preemption

class Callback:  # like JAX's in the garbage collector
    def __del__(self):
        os.kill(os.getpid(), signal.{0})
        for _ in range(10):
            pass

def trains():
    with preemption.Preemption(20) as noted:
        Callback()
        with noted.deferred():
            time.sleep(600)

def does_not():
    Callback()
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits it as ignored
cli.run({1})
"""


@pytest.mark.parametrize(
    ("name", "main", "status", "message"),
    [
        ("SIGINT", "does_not", 130, "big_distill: interrupted\n"),
        ("SIGTERM", "does_not", 143, ""),
        ("SIGINT", "trains", 75, "big_distill: stopped by SIGINT, with nothing to save; the same command goes on\n"),
    ],
)
def test_a_signal_that_a_callback_swallowed_is_heard(name, main, status, message):
    """Nothing of Python's own is on stderr, where it writes what a callback raises."""
    script = SWALLOWS.format(name, main)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=processes.HANG_SECONDS
    )
    assert (done.returncode, done.stderr) == (status, message)


COMPILES = """
import os, signal, sys, threading, time
import jax, jax.numpy as jnp
from big_distill import cli
from big_distill.training import preemption

def strike():
    while True:  # until the main thread is in JAX's compiler
        time.sleep(0.01)
        frame = sys._current_frames()[threading.main_thread().ident]
        while frame and not frame.f_code.co_name.startswith("backend_compile"):
            frame = frame.f_back
        if frame:
            break
    time.sleep(0.1)
    os.kill(os.getpid(), signal.{0})

@jax.jit
def slow(x):
    for i in range(40):  # ten seconds of compilation: it outlasts the usual end of a process
        x = jnp.sort(x @ x + i, axis=i % 2)
    threading.Thread(target=strike, daemon=True).start()
    return x

def trains():
    with preemption.Preemption(20):
        slow(jnp.ones((8, 8)))

def does_not():
    slow(jnp.ones((8, 8)))

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.run({1})
"""


def without_cache():
    """Returns an environment in which XLA compiles all, and slowly, as on a user's machine."""
    ours = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
    return {name: value for name, value in os.environ.items() if name not in ours}


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "main", "status", "message"),
    [
        ("SIGTERM", "trains", 75, "big_distill: stopped by SIGTERM, with nothing to save; the same command goes on\n"),
        ("SIGINT", "does_not", 130, "big_distill: interrupted\n"),
        ("SIGTERM", "does_not", 143, ""),
    ],
)
def test_a_signal_while_xla_compiles_sets_the_status(name, main, status, message):
    """XLA compiles on in another thread when a signal interrupts the wait for it; the process must not crash by it."""
    script = COMPILES.format(name, main)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=processes.HANG_SECONDS,
        env=without_cache(),
    )
    assert (done.returncode, done.stderr) == (status, message)

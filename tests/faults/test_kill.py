"""Checks kill -9 at random moments: by hash, the finished run is the one that was never killed."""

import random
import signal

import processes
import pytest
from processes import STAGED

STAGES = ("teacher", "student's init", "student")
MOMENTS = {"step": 8, "save": 150, "evaluate": 60}  # milliseconds that each may last from its start


def moments(number):
    """Draws where each session dies: in every stage and in every kind of moment."""
    chance = random.Random(0)
    kinds = [(STAGES[3 * i // number], list(MOMENTS)[i % 3]) for i in range(number)]
    return [(stage, event, chance.randint(1, 3), chance.uniform(0, MOMENTS[event])) for stage, event in kinds]


@pytest.mark.full
@pytest.mark.xdist_group("whole staged run")
@pytest.mark.parametrize("number", [4, pytest.param(24, marks=pytest.mark.soak)])
def test_kill_9(whole, tmp_path, number):
    for moment in moments(number):
        status, out, err = processes.run(
            "KILL", *moment, STAGED, f"--workdir={tmp_path}", module="tests/faults/struck.py"
        )
        assert status == -signal.SIGKILL, f"{moment}: {out}{err}"
    status, _, err = processes.run(STAGED, f"--workdir={tmp_path}")
    assert status == 0, err
    assert processes.outcome(tmp_path) == processes.outcome(whole)

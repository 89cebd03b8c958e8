"""One uninterrupted run, for all that is interrupted to be compared with."""

import processes
import pytest


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Its directory."""
    workdir = tmp_path_factory.mktemp("whole")
    status, _, err = processes.run(processes.STAGED, f"--workdir={workdir}")
    assert status == 0, err
    return workdir

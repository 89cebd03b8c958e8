"""Makes one uninterrupted run, with which interrupted runs are compared."""

import processes
import pytest


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Returns the directory of the uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole")
    status, _, err = processes.run(processes.STAGED, f"--workdir={workdir}")
    assert status == 0, err
    return workdir

"""Files are there whole, or not at all."""

import os
import resource

import pytest

from big_distill import atomic


@pytest.fixture
def small_files():
    """No file may grow beyond 1,000 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_does_not_fit_leaves_all_as_it_was(tmp_path, small_files):
    path = tmp_path / "file"
    atomic.write(path, b"before")
    with pytest.raises(OSError, match="File too large") as error:
        atomic.write(path, bytes(5000))
    assert error.value.filename == str(path)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"before")]


def test_an_interruption_leaves_all_as_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic.writing(tmp_path / "file"):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_what_can_be_written_is_found_out_and_left_as_it_is(tmp_path):
    (tmp_path / "old").write_bytes(b"old")
    atomic.check_replaceable(tmp_path / "old")
    atomic.check_replaceable(tmp_path / "new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("old", b"old")]
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    for name in ("pipe", "directory"):
        with pytest.raises(FileExistsError, match="it exists and is not a file"):
            atomic.check_replaceable(tmp_path / name)
    (tmp_path / "new.tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.check_replaceable(tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        atomic.check_replaceable(tmp_path / "none" / "file")

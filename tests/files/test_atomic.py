"""Checks that files are written whole or not at all."""

import os
import resource
import subprocess
import sys

import pytest

from big_distill.files import atomic


@pytest.fixture
def small_files():
    """Limits the size of files to 1,000 bytes."""
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


def test_of_two_processes_the_last_ones_file_stays_whole(tmp_path):
    """Each process has a temporary file of its own, so that neither removes the other's."""
    script = f"""
import pathlib
from big_distill.files import atomic
with atomic.writing(pathlib.Path({str(tmp_path / "file")!r})) as file:
    file.write(b"theirs")
    print("ready", flush=True)
    input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "ready\n"
    atomic.write(tmp_path / "file", b"ours")
    assert (tmp_path / "file").read_bytes() == b"ours"
    _, errors = other.communicate("\n", timeout=240)
    assert other.returncode == 0, errors
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"theirs")]


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
    (tmp_path / f"new.{os.getpid()}.tmp").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic.check_replaceable(tmp_path / "new")
    with pytest.raises(FileNotFoundError):
        atomic.check_replaceable(tmp_path / "none" / "file")

"""Locks a run directory: one process trains there at a time, and goes on with what was trained there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from big_distill.config import Config, differences
from big_distill.errors import RunError
from big_distill.parallel.processes import on_first_process
from big_distill.run_dir.layout import CHECKPOINTS_DIR, SUMMARY_FILE, read_config, read_summary
from big_distill.terminal import say

_FILE = "run.lock"


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: Config, prefix: str) -> Iterator[dict[str, Any] | None]:
    """Makes a run directory, or checks a config against what was trained there, and locks it against other runs.

    Process 0 does so for all. It holds a lock of the operating system, which ends with the process. `prefix` is the
    name of the config in messages: 'config', or 'config.teacher.config'. The value is the summary if the run is
    finished, else None. A finished run is only read, not locked.

    Raises:
      RunError: the directory holds a run with another maths field, another process trains there, or it cannot be
        written.
    """
    with contextlib.ExitStack() as held:

        def claim() -> dict[str, Any] | None:
            _check_same_run(workdir, config, prefix)
            summary = read_summary(workdir)
            if summary is None:
                held.enter_context(_locked(workdir))
            return summary

        yield on_first_process(claim)


def _check_same_run(workdir: pathlib.Path, config: Config, prefix: str) -> None:
    if not any((workdir / CHECKPOINTS_DIR).glob("*")) and not (workdir / SUMMARY_FILE).is_file():
        return
    before = read_config(workdir)
    if changed := differences(before, config, "maths", prefix):
        raise RunError(
            f"{workdir} holds a run with another config ({'; '.join(changed)}): choose another --workdir"
            + ("" if prefix != "config" else ", or set config.init_from to start a new run from its student")
        )
    if prefix == "config" and (moved := differences(before, config, "place")):  # it has those of the runs inside, too
        say(f"{workdir}: its data or networks lie elsewhere now ({'; '.join(moved)})")
    if changed := differences(before, config, "numerics", prefix):
        say(f"{workdir} goes on with other numerics, so not bit-exactly ({'; '.join(changed)})")


@contextlib.contextmanager
def _locked(workdir: pathlib.Path) -> Iterator[None]:
    """Makes and locks the directory. Directories in which nothing was written but the lock are removed again."""
    path = workdir / _FILE
    made = [directory for directory in (workdir, *workdir.parents) if not directory.exists()]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise RunError(f"run directory {workdir} cannot be written: {error}") from error
    with file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.2)  # a call of `holder`, which locks too, has ended by then
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"{workdir} is being trained by {_written_by_holder(path)}: wait for it, stop it, or choose another "
                "--workdir"
            ) from error
        except OSError as error:  # some network mounts have no locks
            say(f"{workdir} cannot be locked ({error.strerror}): start no second run there")
        if not os.fstat(file.fileno()).st_nlink:  # its holder has just removed it
            with _locked(workdir):
                yield
            return
        with contextlib.suppress(OSError):  # only messages read it
            file.truncate(0)
            file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
            file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if os.listdir(workdir) == [_FILE]:
                    path.unlink()
                    for directory in made:
                        directory.rmdir()


def holder(workdir: pathlib.Path) -> str | None:
    """Names the process that trains in a run directory, e.g. 'process 7 of tpu-0'; None if this machine sees none."""
    path = workdir / _FILE
    with contextlib.suppress(FileNotFoundError), path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _written_by_holder(path)
        except OSError:
            return None
    return None


def _written_by_holder(path: pathlib.Path) -> str:
    return path.read_text(errors="replace").strip() or "another process"


def status(held: bool, finished: bool, begun: bool) -> str:
    """Names a run's status: 'running' (a process holds it), 'finished', 'interrupted' (before its end) or 'new'."""
    return "running" if held else "finished" if finished else "interrupted" if begun else "new"

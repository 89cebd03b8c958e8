"""Files that are there whole, or not at all, and whether one can be."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` once everything is on disk."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # of a full disk it has none
        raise


def _temporary(path: pathlib.Path) -> pathlib.Path:
    """A name that is no other process's: of two that write the same file the last one's stays, whole."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def check_writable(path: pathlib.Path) -> None:
    """Raises OSError if a file cannot be written: before the work whose result it is to hold, not after."""
    new = not path.exists()
    path.open("ab").close()
    if new:
        path.unlink()


def check_replaceable(path: pathlib.Path) -> None:
    """`check_writable` for `write`: also that nothing but a file gives way, and that there is room beside it."""
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it exists and is not a file", str(path))
    check_writable(path)
    check_writable(_temporary(path))


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file."""
    with writing(path) as file:
        file.write(data)

"""Writes files whole or not at all, and checks that one can be written."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file to write into, which replaces `path` once everything is on disk."""
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
            error.filename = error.filename or str(path)  # the error of a full disk has none
        raise


def _temporary(path: pathlib.Path) -> pathlib.Path:
    """Names a file of this process alone: if two processes write the same path, the last one's stays, whole."""
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def check_writable(path: pathlib.Path) -> None:
    """Raises OSError if a file cannot be written. Call it before the work whose result the file will hold."""
    new = not path.exists()
    path.open("ab").close()
    if new:
        path.unlink()


def check_replaceable(path: pathlib.Path) -> None:
    """Raises OSError if `write` would fail: something that is not a file is there, or there is no room beside it."""
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it exists and is not a file", str(path))
    check_writable(path)
    check_writable(_temporary(path))


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    with writing(path) as file:
        file.write(data)

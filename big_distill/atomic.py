"""Files that are there whole, or not at all, and whether one can be."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file to write into, which takes the place of `path` once everything is on disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # of a full disk it has none
        raise


def check_writable(path: pathlib.Path) -> None:
    """Raises OSError if a file cannot be written: before the work whose result it is to hold, not after."""
    new = not path.exists()
    path.open("ab").close()
    if new:
        path.unlink()


def write(path: pathlib.Path, data: bytes) -> None:
    """Writes a file."""
    with writing(path) as file:
        file.write(data)

"""Computes the SHA-256 of files, and pins the files of a directory by a list of their sums among them.

The list has the format of `sha256sum`; `cd DIR && sha256sum --check checksums.sha256` verifies it.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence

from big_distill.files import atomic

LIST_FILE = "checksums.sha256"


def write(directory: pathlib.Path) -> None:
    """Writes the list of all files below a directory, whole or not at all."""
    lines = [f"{sha256(directory / name)}  {name}\n" for name in _names(directory)]
    atomic.write(directory / LIST_FILE, "".join(lines).encode())


def damage(directory: pathlib.Path, unlisted: Sequence[str] = ()) -> str | None:
    """Says what has changed since `write`, such as 'state/manifest.ocdbt is missing'; None if nothing has.

    Only files that are `unlisted` may be there without being in the list.
    """
    try:
        lines = (directory / LIST_FILE).read_text().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        there = set(_names(directory))
        for name in sorted((there - {LIST_FILE, *unlisted}) | sums.keys()):
            if name not in there:
                return f"{name} is missing"
            if name not in sums:
                return f"{name} is not in {LIST_FILE}"
            if sha256(directory / name) != sums[name]:
                return f"{name} has changed"
        return None if sums else f"{LIST_FILE} is empty"
    except FileNotFoundError:
        return f"{LIST_FILE} is missing"
    except (OSError, ValueError) as error:  # ValueError: the list is no text
        return f"it cannot be read ({error})"


def _names(directory: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def sha256(path: pathlib.Path) -> str:
    """Computes the SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

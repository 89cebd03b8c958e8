"""Lists the image files of a directory, and reads them: their sizes, their bytes, or a hash of their contents."""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib
import stat
import time
from typing import NamedTuple

from big_distill.errors import DataError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_NOT_OURS = ("__MACOSX", "@eaDir")  # folders that macOS and Synology add
_SETTLED = 2.0  # seconds after which another change of a folder gives it another time stamp
_END = 1 << 14  # bytes of each end of a file that stand for its contents


class Listing(NamedTuple):
    """Holds what a directory contains.

    images: image files by folder, sorted, both relative to the root ('' itself); folders without images are there, too.
    ignored: number of other files by suffix.
    stamps: times at which the folders were changed.
    """

    images: dict[str, list[str]]
    ignored: collections.Counter[str]
    stamps: dict[str, int]


_kept: dict[pathlib.Path, Listing] = {}


def list_images(root: pathlib.Path) -> Listing:
    """Lists a directory, without hidden files. If nothing has changed since the last call, it returns that listing.

    Raises:
      OSError: the directory or one below it cannot be read.
    """
    kept = _kept.pop(root, None)
    if kept is None or any(_stamp(f"{root}/{folder}") != stamp for folder, stamp in kept.stamps.items()):
        began = time.time_ns()
        kept = _scan(root)
        if max(kept.stamps.values()) > began - _SETTLED * 1e9:
            return kept
    _kept.clear()  # one is enough: the splits of a set are opened one after the other
    _kept[root] = kept
    return kept


def _stamp(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1


def _scan(root: pathlib.Path) -> Listing:
    """Lists a directory and all below it. A link to a folder around it is not followed."""
    seen = Listing({}, collections.Counter(), {})
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        folder, around = waiting.pop()
        status = os.stat(f"{root}/{folder}")
        if (here := (status.st_dev, status.st_ino)) in around:
            continue
        seen.stamps[folder] = status.st_mtime_ns
        with os.scandir(f"{root}/{folder}") as entries:
            everything = [(entry.name, _is_folder(entry)) for entry in entries]
        found = [(name, is_dir) for name, is_dir in everything if not name.startswith(".")]
        if hidden := len(everything) - len(found):
            seen.ignored["hidden"] += hidden
        path = f"{folder}/" if folder else ""
        files = [name for name, is_dir in found if not is_dir]
        images = sorted(name for name in files if name.lower().endswith(SUFFIXES))
        seen.images[folder] = [f"{path}{name}" for name in images]
        seen.ignored.update(pathlib.PurePath(name).suffix.lower() or "without suffix" for name in {*files} - {*images})
        folders = [name for name, is_dir in found if is_dir and name not in _NOT_OURS]
        waiting += [(f"{path}{name}", (*around, here)) for name in folders]
    return seen


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def hash_of(path: str) -> bytes | None:
    """Hashes what stands for the contents of a file: its size and both its ends. None if there is nothing to read.

    Raises:
      DataError: it is no file.
    """
    size = num_bytes(path)
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        first = os.pread(file, _END, 0)
        last = os.pread(file, _END, max(size - _END, len(first)))
        return hashlib.sha256(b"%d " % size + first + last).digest() if first else None
    except OSError:
        return None
    finally:
        os.close(file)


def num_bytes(path: str) -> int:
    """Returns the size of a file in bytes, or 0 for a link that leads nowhere, which counts as a damaged image.

    Raises:
      DataError: it is no file.
    """
    try:
        status = os.stat(path)
    except OSError:
        return 0
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise DataError(f"{path} is no file, but a directory, pipe or device")
    return status.st_size


def read_file(path: str) -> bytes:
    """Reads a file. No bytes count as a damaged image, and are treated as one."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:
        return b""

"""Cuts a folder into training, validation and test split, so that what belongs together stays together."""

from __future__ import annotations

import hashlib
import itertools
import os
import pathlib
import re
from collections.abc import Iterable
from concurrent import futures

from tqdm import tqdm

from big_distill.config import SourceConfig
from big_distill.data.folder_files import hash_of
from big_distill.data.split_names import base_splits
from big_distill.errors import ConfigError, DataError

File = tuple[str, str]
"""Holds the path of a file, relative to the root, and its class, which is '' without labels."""
_CHUNK = 256  # files that a thread takes at a time
_CUT = ("train", "validation", "test")


def named_splits(source: SourceConfig) -> list[str]:
    """Lists the base splits that a config names."""
    named = [split for split in (source.train, source.validation, source.test) if split]
    return [name for split in named for name in base_splits(split)]


def is_cut(source: SourceConfig) -> bool:
    """Returns True if a config wants a split that a folder without splits has only if it is cut."""
    return not set(_CUT[1:]).isdisjoint(named_splits(source))


def cut(root: pathlib.Path, files: list[File], source: SourceConfig) -> dict[str, list[File]]:
    """Cuts the files into training, validation and test split. A group, or a content, is in one of them.

    Raises:
      ConfigError: a file has no group.
    """
    if source.group:
        groups = _groups(root, files, source.group)
        if len(set(groups)) == 1:
            raise ConfigError(
                f"config.source.group={source.group!r} makes one group, {groups[0]!r}, of all files of {root}"
            )
        keys = list(map(_hash, groups))
    else:
        with futures.ThreadPoolExecutor(max(source.num_threads, 4)) as pool:  # they wait for the disk
            names = [file for file, _ in files]
            parts = [names[i : i + _CHUNK] for i in range(0, len(names), _CHUNK)]
            hashes = itertools.chain.from_iterable(
                pool.map(lambda part: [hash_of(f"{root}/{name}") or _hash(name) for name in part], parts)
            )
            keys = list(tqdm(hashes, f"reading {root}", len(files), unit=" files", delay=2, disable=None))
    ends = [source.fractions[0], source.fractions[0] + source.fractions[1]]
    splits: dict[str, list[File]] = {name: [] for name in _CUT}
    for file, key in zip(files, keys, strict=True):
        drawn = int.from_bytes(key[:8]) / 2**64
        splits[_CUT[sum(drawn >= end for end in ends)]].append(file)
    return splits


def _hash(text: str) -> bytes:
    return hashlib.sha256(os.fsencode(text)).digest()


def check_groups(root: pathlib.Path, splits: dict[str, list[File]], source: SourceConfig) -> None:
    """Raises unless every group is in one of the splits that the directory has."""
    if any("[" in split for split in (source.train, source.validation or "", source.test or "")):
        raise ConfigError(
            f"config.source.group={source.group!r}: a slice such as {source.train!r} does not keep groups together; "
            "config.source.train=train, .validation=validation and .test=test do, in a directory without splits"
        )
    home: dict[str, str] = {}
    for name, files in splits.items():
        for group in _groups(root, files, source.group):
            if home.setdefault(group, name) != name:
                raise DataError(
                    f"{root}: the group {group!r} of config.source.group is in the splits {home[group]} and {name}"
                )


def _groups(root: pathlib.Path, files: Iterable[File], pattern: str) -> list[str]:
    """Returns the group of each file: the first group of the expression where it is found, or all that it matches."""
    groups = []
    for file, _ in files:
        found = re.search(pattern, file)
        if found is None:
            raise ConfigError(f"config.source.group={pattern!r} is not found in {file}: {root} needs a group for each")
        groups.append(found[1] if found.re.groups and found[1] is not None else found[0])
    return groups

"""Opens a folder of image files: finds its splits and classes, and cuts one without splits by the files' contents."""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib
import re
import stat
import time
import unicodedata
from collections.abc import Iterable
from concurrent import futures
from typing import NamedTuple

from big_distill.config import SourceConfig
from big_distill.data import Source
from big_distill.data.split_names import base_splits, split_ids
from big_distill.errors import ConfigError, DataError

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_NOT_OURS = ("__MACOSX", "@eaDir")  # folders that macOS and Synology add
_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")
_CUT = ("train", "validation", "test")
_PLAIN = ("images", "image", "imgs", "img")  # CLASS/images/*.jpg, as in Tiny-ImageNet
_SETTLED = 2.0  # seconds after which another change of a folder gives it another time stamp
_END = 1 << 14  # bytes of each end of a file that stand for its contents

_File = tuple[str, str]
"""Holds the path of a file, relative to the root, and its class, which is '' without labels."""


class _Seen(NamedTuple):
    """Holds what a directory contains.

    images: image files by folder, sorted, both relative to the root ('' itself); folders without images are there, too.
    ignored: number of other files by suffix.
    stamps: times at which the folders were changed.
    """

    images: dict[str, list[str]]
    ignored: collections.Counter[str]
    stamps: dict[str, int]


class _Arranged(NamedTuple):
    """Holds the files of each split, its classes, those of them without an image, and images that are in no class."""

    splits: dict[str, list[_File]]
    classes: list[str]
    strays: list[str]


def open_folder(source: SourceConfig, split: str) -> Source:
    """Opens image files: `DIR/SPLIT/CLASS/*`, `DIR/CLASS/*` or, without labels, `DIR/SPLIT/*` or `DIR/*`.

    A folder `images` between a class and its files counts for nothing. Hidden files, and images below a class in
    folders of their own, are left out, and the latter are told. A split is in the fixed order of a hash of its file
    names, so slices mix the classes.

    A directory without splits is one split, 'train'. If the config names 'validation' or 'test', it is cut into the
    three by `source.fractions`. Where a file goes follows from its contents alone, or from its group, so that adding
    files moves none, and copies stay together. An empty folder still is a class.

    Raises:
      ConfigError: the path is not set, or a field does not fit the directory.
      DataError: no images, or folders that may be classes or splits.
    """
    if not source.path:
        raise ConfigError("config.source.path must be set: the directory of the source 'folder'")
    root = pathlib.Path(source.path).expanduser()
    try:
        seen = _seen(root)
        arranged = _arranged(root, seen, source)
        ignored = ", ".join(f"{n:,} {suffix}" for suffix, n in seen.ignored.most_common())
        ignored = f"; ignored: {ignored}" * bool(ignored)
        if not any(arranged.splits.values()):
            raise DataError(f"{root} holds no image files ({', '.join(SUFFIXES)}){ignored}")
        splits = {name: sorted(files, key=lambda file: _hash(file[0])) for name, files in arranged.splits.items()}
        remarks = [
            f"{root}: {sum(map(len, splits.values())):,} image files, {len(arranged.classes):,} classes{ignored}"
        ]
        if list(splits) == ["train"] and _names_cut(source):
            splits = _cut(root, splits["train"], source)
            remarks.append(f"{root} is cut: " + ", ".join(f"{len(files):,} {name}" for name, files in splits.items()))
        elif source.group:
            _check_groups(root, splits, source)
        if arranged.strays:
            remarks.append(
                f"{root}: ignored {len(arranged.strays):,} images that lie in no class folder, such as "
                f"{arranged.strays[0]} (see config.source.layout)"
            )
        remarks += _remarks_on_classes(root, splits, arranged.classes)
        index = {label: i for i, label in enumerate(arranged.classes)} | {"": -1}
        files = [(file, index[label]) for members in splits.values() for file, label in members]
        lengths = {name: len(members) for name, members in splits.items()}
        examples = [files[i] for i in split_ids(str(root), split, lengths)]
        sizes = [_size(root / file) for file, _ in examples]
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error}") from error

    here = {label for _, label in examples}
    labelled = here != {-1}
    return Source(
        name=f"{root} {split}",
        num_examples=len(examples),
        num_classes=len(arranged.classes) or None if labelled else None,
        class_names=tuple(arranged.classes) if labelled else (),
        fingerprint=_hash(repr((examples, sizes))),
        read=lambda ids: [(_read_file(root / examples[i][0]), examples[i][1]) for i in ids],
        example_name=lambda i: str(root / examples[i][0]),
        empty_classes=tuple(label for i, label in enumerate(arranged.classes) if i not in here) if labelled else (),
        remarks=tuple(remarks),
    )


def _arranged(root: pathlib.Path, seen: _Seen, source: SourceConfig) -> _Arranged:
    """Finds out which folders are splits and which are classes."""
    images = _without_plain(seen.images)
    filled = {folder for folder, files in images.items() if files}
    tops = {folder.split("/")[0] for folder in filled if folder}
    layout = source.layout if source.layout != "auto" else _guess(root, filled, tops, source)
    by_split = layout == "split/class"
    splits: dict[str, list[_File]] = {top: [] for top in sorted(tops)} if by_split else {"train": []}
    labelled = {folder.split("/")[0] for folder in filled if "/" in folder} if by_split else {"train"}
    classes, strays = set(), []
    for folder, files in images.items():
        parts = folder.split("/") if folder else []
        split = parts.pop(0) if by_split and parts else "train"
        if split not in splits:  # it has no images, or lies beside the splits
            strays += files
        elif layout == "flat" or split not in labelled:
            splits[split] += [(file, "") for file in files]
        elif not parts or (len(parts) > 1 and source.layout == "auto"):
            strays += files
        else:
            label = unicodedata.normalize("NFC", parts[0])
            classes.add(label)
            splits[split] += [(file, label) for file in files]
    if len(strays) > sum(map(len, splits.values())):
        raise _unclear(root, strays[0].rpartition("/")[0] or ".")
    return _Arranged(splits, sorted(classes), strays)


def _guess(root: pathlib.Path, filled: set[str], tops: set[str], source: SourceConfig) -> str:
    """Says which level of folders is the classes', from their names and from where there are images."""
    if not tops:
        return "flat"
    deep = {folder.split("/")[0] for folder in filled if "/" in folder}
    known = {top for top in tops if top.casefold() in _SPLITS}
    if known & deep or known == tops:
        return "split/class"
    if deep == tops and not any(folder in tops for folder in filled):  # all lies one level deeper
        if tops & set(_named_splits(source)):
            return "split/class"
        raise _unclear(root, min(folder for folder in filled if folder))
    return "class"


def _unclear(root: pathlib.Path, folder: str) -> DataError:
    return DataError(
        f"{root}: which folder is the class of the images in {folder}? "
        "--config.source.layout=class: the first one, whatever lies below it; split/class: the second one, and the "
        "first is a split, which config.source.train names"
    )


def _without_plain(images: dict[str, list[str]]) -> dict[str, list[str]]:
    """Gives the images of a folder `images` to the folder around it, if that has no others."""
    children = collections.Counter(folder.rpartition("/")[0] for folder, files in images.items() if folder and files)
    moved = dict(images)
    for folder, files in images.items():
        parent, _, name = folder.rpartition("/")
        if folder and name.casefold() in _PLAIN and files and not images[parent] and children[parent] == 1:
            moved[parent] = moved.pop(folder)
    return moved


def _named_splits(source: SourceConfig) -> list[str]:
    """Lists the base splits that a config names."""
    named = [split for split in (source.train, source.validation, source.test) if split]
    return [name for split in named for name in base_splits(split)]


def _names_cut(source: SourceConfig) -> bool:
    return not {"validation", "test"}.isdisjoint(_named_splits(source))


def _cut(root: pathlib.Path, files: list[_File], source: SourceConfig) -> dict[str, list[_File]]:
    """Cuts the files into training, validation and test split. A group, or a content, is in one of them."""
    keys: Iterable[bytes]
    if source.group:
        keys = [group.encode() for group in _groups(root, files, source.group)]
    else:
        with futures.ThreadPoolExecutor(max(source.num_threads, 4)) as pool:  # they wait for the disk
            keys = list(pool.map(lambda file: _content(root / file[0]), files, chunksize=256))
    ends = [source.fractions[0], source.fractions[0] + source.fractions[1]]
    cut: dict[str, list[_File]] = {name: [] for name in _CUT}
    for file, key in zip(files, keys, strict=True):
        drawn = int.from_bytes(hashlib.sha256(key).digest()[:8]) / 2**64
        cut[_CUT[sum(drawn >= end for end in ends)]].append(file)
    return cut


def _groups(root: pathlib.Path, files: Iterable[_File], pattern: str) -> list[str]:
    """Returns the group of each file: the first group of the expression where it is found, or all that it matches."""
    groups = []
    for file, _ in files:
        found = re.search(pattern, file)
        if found is None:
            raise ConfigError(f"config.source.group={pattern!r} is not found in {file}: {root} needs a group for each")
        groups.append(found[1] if found.re.groups and found[1] is not None else found[0])
    return groups


def _check_groups(root: pathlib.Path, splits: dict[str, list[_File]], source: SourceConfig) -> None:
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


def _remarks_on_classes(root: pathlib.Path, splits: dict[str, list[_File]], classes: list[str]) -> list[str]:
    """Says which classes have no image in a labelled split."""
    remarks = []
    for name, files in splits.items():
        missing = sorted({*classes} - (here := {label for _, label in files}))
        if missing and here - {""}:
            remarks.append(
                f"{root}: classes without images in {name}: {', '.join(missing[:9])}{', ...' * (len(missing) > 9)}"
            )
        elif files and classes and not here - {""}:
            remarks.append(f"{root}: the split {name} has no labels")
    return remarks


_kept: dict[pathlib.Path, _Seen] = {}


def _seen(root: pathlib.Path) -> _Seen:
    """Lists the directory, or finds it unchanged since another split was opened."""
    kept = _kept.get(root)
    if kept is None or any(_stamp(root / folder) != stamp for folder, stamp in kept.stamps.items()):
        kept = _Seen({}, collections.Counter(), {})
        latest = time.time() - _SETTLED
        _scan(root, kept)
        _kept.clear()
        if max(kept.stamps.values()) < latest * 1e9:
            _kept[root] = kept
    return kept


def _stamp(folder: pathlib.Path) -> int:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return -1


def _scan(root: pathlib.Path, seen: _Seen) -> None:
    """Lists a directory and all below it, without hidden files. A link to a folder around it is not followed."""
    waiting: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while waiting:
        folder, around = waiting.pop()
        status = (root / folder).stat()
        if (here := (status.st_dev, status.st_ino)) in around:
            continue
        seen.stamps[folder] = status.st_mtime_ns
        with os.scandir(root / folder) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
        path = f"{folder}/" if folder else ""
        files = [name for name, is_dir in found if not is_dir]
        images = sorted(name for name in files if name.lower().endswith(SUFFIXES))
        seen.images[folder] = [f"{path}{name}" for name in images]
        seen.ignored.update(pathlib.PurePath(name).suffix.lower() or "without suffix" for name in {*files} - {*images})
        folders = [name for name, is_dir in found if is_dir and name not in _NOT_OURS]
        waiting += [(f"{path}{name}", (*around, here)) for name in folders]


def _content(path: pathlib.Path) -> bytes:
    """Returns what stands for the contents of a file: its size and both its ends. No bytes if it cannot be read."""
    size = _size(path)
    try:
        with path.open("rb") as file:
            first = file.read(_END)
            file.seek(max(size - _END, len(first)))
            return b"%d " % size + first + file.read(_END)
    except OSError:
        return b""


def _size(path: pathlib.Path) -> int:
    """Returns the size of a file, or 0 for a link that leads nowhere, which counts as a damaged image."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise DataError(f"{path} is no file, but a directory, pipe or device")
    return status.st_size


def _read_file(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # counts as a damaged image, and is treated as one


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()

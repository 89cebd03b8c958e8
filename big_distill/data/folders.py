"""Opens a folder of image files: finds its splits and classes, and cuts one without splits by the files' contents."""

from __future__ import annotations

import collections
import hashlib
import os
import pathlib
import unicodedata
from typing import NamedTuple

import numpy as np

from big_distill.config import SourceConfig
from big_distill.data import Source, holdout
from big_distill.data.folder_files import SUFFIXES, Listing, list_images, num_bytes, read_file
from big_distill.data.holdout import File
from big_distill.data.split_names import split_ids
from big_distill.errors import ConfigError, DataError

_SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "evaluation")
_PLAIN = ("images", "image", "imgs", "img")  # CLASS/images/*.jpg, as in Tiny-ImageNet


class _Folder(NamedTuple):
    """Holds the files of each split in their order, the classes, and what to say about them."""

    splits: dict[str, list[File]]
    classes: list[str]
    remarks: tuple[str, ...]


class _Arranged(NamedTuple):
    """Holds the files of each split, its classes, those of them without an image, and images that are in no class."""

    splits: dict[str, list[File]]
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
        folder = _folder(root, list_images(root), source)
        index = {label: i for i, label in enumerate(folder.classes)} | {"": -1}
        files = [(file, index[label]) for members in folder.splits.values() for file, label in members]
        lengths = {name: len(members) for name, members in folder.splits.items()}
        examples = [files[i] for i in split_ids(str(root), split, lengths)]
        sizes = [num_bytes(f"{root}/{file}") for file, _ in examples]
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error}") from error

    here = {label for _, label in examples}
    labelled = here != {-1}
    return Source(
        name=f"{root} {split}",
        num_examples=len(examples),
        num_classes=len(folder.classes) or None if labelled else None,
        class_names=tuple(folder.classes) if labelled else (),
        fingerprint=_hash(repr((examples, sizes))),
        read=lambda ids: [(read_file(f"{root}/{examples[i][0]}"), examples[i][1]) for i in ids],
        example_name=lambda i: str(root / examples[i][0]),
        empty_classes=tuple(label for i, label in enumerate(folder.classes) if i not in here) if labelled else (),
        labels=np.array([label for _, label in examples]) if labelled else None,
        remarks=folder.remarks,
    )


_kept: dict[tuple[object, ...], tuple[Listing, _Folder]] = {}


def _folder(root: pathlib.Path, listing: Listing, source: SourceConfig) -> _Folder:
    """Arranges and cuts a directory, or finds that this was done for another split."""
    is_cut = holdout.is_cut(source)
    key = (root, source.layout, source.group, source.fractions, is_cut)
    kept, folder = _kept.get(key, (None, None))
    if folder is not None and kept is listing:
        return folder
    arranged = _arranged(root, listing, source)
    ignored = ", ".join(f"{n:,} {suffix}" for suffix, n in listing.ignored.most_common())
    ignored = f"; ignored: {ignored}" * bool(ignored)
    if not any(arranged.splits.values()):
        raise DataError(f"{root} holds no image files ({', '.join(SUFFIXES)}){ignored}")
    splits = {name: sorted(files, key=lambda file: _hash(file[0])) for name, files in arranged.splits.items()}
    num_files, num_classes = sum(map(len, splits.values())), len(arranged.classes)
    remarks = [f"{root}: {num_files:,} image files, {num_classes:,} classes{ignored}"]
    if list(splits) == ["train"] and is_cut:
        splits = holdout.cut(root, splits["train"], source)
        remarks.append(f"{root} is cut: " + ", ".join(f"{len(files):,} {name}" for name, files in splits.items()))
    else:
        if is_cut and source.fractions != SourceConfig().fractions:
            raise ConfigError(
                f"config.source.fractions={source.fractions}, but {root} has splits of its own: {', '.join(splits)}"
            )
        if source.group:
            holdout.check_groups(root, splits, source)
    if arranged.strays:
        remarks.append(
            f"{root}: ignored {len(arranged.strays):,} images that lie in no class folder, such as "
            f"{arranged.strays[0]} (see config.source.layout)"
        )
    folder = _Folder(splits, arranged.classes, (*remarks, *_remarks_on_classes(root, splits, arranged.classes)))
    _kept.clear()
    _kept[key] = listing, folder
    return folder


def _arranged(root: pathlib.Path, listing: Listing, source: SourceConfig) -> _Arranged:
    """Finds out which folders are splits and which are classes."""
    images = _without_plain(listing.images)
    filled = {folder for folder, files in images.items() if files}
    tops = {folder.split("/")[0] for folder in filled if folder}
    layout = source.layout if source.layout != "auto" else _guess(root, filled, tops, source)
    by_split = layout == "split/class"
    if by_split and (meant := {top for top in tops if _is_split(top)}):
        tops = meant | tops & {*holdout.named_splits(source)}  # not the others, such as docs/
    splits: dict[str, list[File]] = {top: [] for top in sorted(tops)} if by_split else {"train": []}
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
    known = {top for top in tops if _is_split(top)}
    if known & deep or known == tops:
        return "split/class"
    if deep == tops and not any(folder in tops for folder in filled):  # all lies one level deeper
        if tops & set(holdout.named_splits(source)):
            return "split/class"
        raise _unclear(root, min(folder for folder in filled if folder))
    return "class"


def _is_split(folder: str) -> bool:
    return folder.casefold() in _SPLITS


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


def _remarks_on_classes(root: pathlib.Path, splits: dict[str, list[File]], classes: list[str]) -> list[str]:
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


def _hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()

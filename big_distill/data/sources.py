"""Opens a split of a data set for reading by id, and checks that it is what the config says."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_distill.config import PATH_SOURCES, SourceConfig, user_code
from big_distill.data import Example, Source, array_source
from big_distill.data.draws import permutation
from big_distill.data.folders import open_folder
from big_distill.data.idx import open_idx
from big_distill.data.reading import with_bit_depth
from big_distill.data.split_names import split_ids
from big_distill.errors import ConfigError, DataError, close, nearest

BUILT_IN = ("digits", "random", *PATH_SOURCES)


def open_source(source: SourceConfig, split: str, *, num_classes: int, image_size: int, channels: int) -> Source:
    """Opens a split.

    Args:
      source: name and place of the set.
      split: name in TFDS syntax: 'train', 'train[:90%]', 'train+validation', 'test[10:20]'.
      num_classes, image_size, channels: the run's; only the source `random` reads them, to make such images.

    Raises:
      ConfigError: the name is not that of a source, or a function of your own failed.
      DataError: the set is not there, is damaged or has no such split.
    """
    if source.label and source.name in BUILT_IN:
        raise ConfigError(f"config.source.label={source.label!r} is of TFDS sets, but the source is {source.name!r}")
    made = _open(source, split, num_classes, (image_size, image_size, channels))
    return with_bit_depth(made, None if source.bit_depth == "auto" else int(source.bit_depth))


def _open(source: SourceConfig, split: str, num_classes: int, shape: tuple[int, int, int]) -> Source:
    if ":" in source.name:
        made = user_code.load(source.name, "config.source.name")(source, split)
        if not isinstance(made, Source):
            raise ConfigError(f"config.source.name={source.name!r} returned {type(made).__name__}, expected a Source")
        return made
    if source.name == "digits":
        return _digits_source(split)
    if source.name == "random":
        return _random_source(split, num_classes, shape)
    if source.name == "folder":
        return open_folder(source, split)
    if source.name == "idx":
        return open_idx(source.path, split, num_classes)
    return _tfds_source(source, split, num_classes)


def check_source(
    source: Source, num_examples: int, num_classes: int, labels_for: str | None, allow_empty_classes: bool = False
) -> None:
    """Raises DataError unless a split is what the config says. `labels_for` names an objective that needs labels."""
    check_no_class_is_empty(source, allow_empty_classes)
    if source.num_examples != num_examples:
        raise DataError(f"config.source.num_train_examples={num_examples}, but {source.name} has {source.num_examples}")
    check_classes(source, num_classes)
    if labels_for is not None and source.num_classes is None:
        raise DataError(f"config.objective.name={labels_for!r} needs labels, but {source.name} has none")


def check_no_class_is_empty(source: Source, allow_empty_classes: bool) -> None:
    """Raises DataError if a class is known to have no example and that is not allowed."""
    if source.empty_classes and not allow_empty_classes:
        raise DataError(
            f"{source.name} has no image of {len(source.empty_classes)} of its classes: "
            f"{', '.join(source.empty_classes[:9])}{', ...' * (len(source.empty_classes) > 9)}; "
            "--config.source.allow_empty_classes trains without them"
        )


def check_classes(source: Source, num_classes: int, class_names: Sequence[str] = ()) -> None:
    """Raises DataError unless a split has as many classes as the config says, or no labels.

    If `class_names`, those of a network, and the split's are both known, they must be equal, too.
    """
    if twice := [name for name, count in collections.Counter(source.class_names).items() if count > 1]:
        raise DataError(f"{source.name} has the class name {twice[0]!r} more than once")
    if source.num_classes not in (None, num_classes):
        names = f": {', '.join(source.class_names[:9])}{', ...' * (len(source.class_names) > 9)}"
        raise DataError(
            f"config.num_classes={num_classes}, but {source.name} has {source.num_classes}"
            f"{names if source.class_names else ''}"
        )
    for index, (ours, theirs) in enumerate(zip(source.class_names, class_names, strict=False)):
        if ours != theirs:
            raise DataError(
                f"{source.name} has other classes than the network: class {index} is {ours!r}, the network's {theirs!r}"
            )


def class_names_of(source: Source, eval_names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the class names of training, or else of evaluation, in the order of the labels; () without names.

    Raises:
      DataError: training and evaluation number their classes differently.
    """
    names = source.class_names
    if names and eval_names and names != eval_names:
        index = next(i for i, (a, b) in enumerate(zip(names, eval_names, strict=True)) if a != b)
        raise DataError(
            f"training and evaluation number their classes differently: class {index} of {source.name} is "
            f"{names[index]!r}, but {eval_names[index]!r} in the evaluation split"
        )
    return names or eval_names


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Loads scikit-learn's handwritten digits in a fixed random order. Every stretch of it holds the classes evenly."""
    spec = importlib.util.find_spec("sklearn")  # importing it would take two seconds
    if spec is None or spec.origin is None:
        raise DataError("the digits are a file of scikit-learn, which is not installed: pip install scikit-learn")
    table = np.loadtxt(pathlib.Path(spec.origin).with_name("datasets") / "data" / "digits.csv.gz", delimiter=",")
    grey, labels = table[:, :-1], table[:, -1].astype(int)
    order = permutation(0, len(labels), 0)
    rank = np.empty(len(labels))  # rank of an example within its class, in (0, 1)
    for label in range(10):
        members = np.flatnonzero(labels[order] == label)
        rank[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = order[np.argsort(rank, kind="stable")]
    pixels = np.rint(grey[order] * (255 / 16)).astype(np.uint8)  # values are 0 to 16
    return pixels.reshape(-1, 8, 8), labels[order]


def _digits_source(split: str) -> Source:
    """Makes 1,797 grey images of 8 x 8 px: the first 1,200 of the stratified order train, 200 validate, 397 test."""
    ids = split_ids("digits", split, {"train": 1200, "validation": 200, "test": 397})
    images, labels = _digits()
    return array_source(f"digits {split}", images[ids], labels[ids], [str(digit) for digit in range(10)])


def _random_source(split: str, num_classes: int, shape: tuple[int, int, int]) -> Source:
    """Makes noise of the run's size and classes, other in every split. Labels go round. Tests and `:smoke` use it."""
    lengths = {"train": 64, "validation": 32, "test": 32}
    ids = split_ids("random", split, lengths)
    images = np.random.Generator(np.random.Philox(0)).integers(0, 256, (sum(lengths.values()), *shape), np.uint8)
    labels = np.arange(len(ids)) % num_classes
    names = [str(label) for label in range(num_classes)]
    return dataclasses.replace(array_source(f"random {split}", images[ids], labels, names), empty_classes=())


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _tfds_source(source: SourceConfig, split: str, num_classes: int) -> Source:
    """Opens a TFDS set that was prepared as array_record, and reads it without TensorFlow.

    An integer without names, which the set or the config calls its label, has the run's classes, 0 to num_classes - 1.
    """
    import tensorflow_datasets as tfds  # slow to import

    from big_distill.data import archives

    builder = _tfds_builder(source.name, source.data_dir)
    info, features = builder.info, builder.info.features
    num_examples = len(split_ids(source.name, split, {name: s.num_examples for name, s in info.splits.items()}))
    images = sorted(key for key, feature in features.items() if isinstance(feature, tfds.features.Image))
    named = sorted(key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel))
    numbers = sorted(k for k, f in features.items() if f.shape == () and np.issubdtype(f.np_dtype, np.integer))
    if not images:
        raise DataError(f"{source.name} has no images: its features are {', '.join(features)}")
    before = "image" if "image" in images else images[0]  # the choice of versions before 0.2.0
    seen = info.supervised_keys[0] if info.supervised_keys else None
    image = seen if seen in images else before  # a segmentation mask is an Image too
    if np.issubdtype(features[image].np_dtype, np.floating):
        raise DataError(f"{source.name} holds {image!r} as floating-point numbers, whose range is not known")
    label = _tfds_label(source, info.supervised_keys, named, numbers)
    class_names = tuple(map(str, range(num_classes)))
    if label in named:
        class_names = tuple(features[label].names)
    decoders = {key: tfds.decode.SkipDecoding() for key in images}
    try:
        data = builder.as_data_source(split, decoders=decoders)
    except NotImplementedError as error:
        stored = info.file_format.value
        raise DataError(f"{builder.data_dir} is stored as {stored}: prepare it again as array_record") from error
    earlier = "label" if "label" in named else next(iter(named), None)  # the choice of versions before 0.2.0
    chosen = ([] if label == earlier else [label]) + ([] if image == before else [image])
    contents = sorted((name, list(s.shard_lengths), int(s.num_bytes)) for name, s in info.splits.items())
    checksums = sorted(archives.checksums(builder).items())

    def read(ids: np.ndarray) -> list[Example]:
        try:
            examples = data.__getitems__(ids.tolist())
        except Exception as error:  # TFDS or array_record: a file is missing or damaged
            raise DataError(f"{builder.data_dir} cannot be read: {_one_line(error)}") from error
        return [(example[image], int(example[label]) if label else -1) for example in examples]

    return Source(
        name=f"{info.full_name} {split}",
        num_examples=num_examples,
        num_classes=len(class_names) if label else None,
        class_names=class_names if label else (),
        fingerprint=_hash(repr((info.full_name, split, contents, checksums, *chosen))),
        read=read,
        example_name=lambda i: f"{source.name} {split} #{i}",
    )


def _tfds_label(source: SourceConfig, supervised: Any, named: list[str], numbers: list[str]) -> str | None:
    """Chooses the label of a set: the config's, else what the set says is learned, else 'label', else the only one.

    Args:
      source: the config; its `label` is '' if it does not choose.
      supervised: (input, label) of the set, or None.
      named: features that are classes with names.
      numbers: features that are an integer, those of `named` among them.
    """
    if source.label:
        if source.label not in numbers:
            raise ConfigError(f"config.source.label={source.label!r} is no label{nearest(source.label, numbers)}")
        return source.label
    own = supervised[1] if supervised and isinstance(supervised[1], str) else None
    for label in (own, "label"):
        if label in numbers:
            return label
    if len(named) > 1 or (own and named):
        says = (
            f"says that {own!r} is to be learned, which is no class" if own else "does not say which is to be learned"
        )
        raise DataError(f"{source.name} has labels, {', '.join(named)}, and {says}: config.source.label names one")
    return next(iter(named), None)


def _tfds_builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    from big_distill.data import archives

    root = os.path.expanduser(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=root)
    except tfds.core.registered.DatasetNotFoundError as error:
        missing = error
    except Exception as error:  # TFDS: a description is missing or damaged
        raise DataError(f"{name} in {root} cannot be read: {_one_line(error)}") from error
    command = f"tfds build {name} --file_format=array_record --data_dir={root}"
    known = [*BUILT_IN, *tfds.list_builders(with_community_datasets=False)]
    if name in archives.DATASETS:
        command = f"python -m big_distill.prepare --dataset={name} --archives=DIR --data_dir={root}"
    elif name.split("/")[0] not in known:
        near = close(name, known)
        hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(BUILT_IN)}, a TFDS set, module:function"
        raise ConfigError(f"config.source.name={name!r} is not known; {hint}") from missing
    elif importlib.util.find_spec("tensorflow") is None:
        command = f"pip install 'big_distill[tf]' && {command}"
    else:
        try:
            builder = tfds.builder(name, data_dir=root, file_format="array_record")
            builder.download_and_prepare()
            return builder
        except Exception as error:  # the network, a missing manual download, or a builder of TFDS
            raise DataError(f"TFDS cannot prepare {name} in {root}: {_one_line(error)}; see: {command}") from error
    raise DataError(f"{name} is not in {root}; make it with: {command}") from missing


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]

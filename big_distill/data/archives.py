"""Makes TFDS sets from official archives, as TFDS's own builders of that name do: no network, no TensorFlow.

TFDS's builders know everything about these sets (version, features, texts, upstream's URLs and checksums), but they
read and encode through `tf.io` and `tf.image`. So a subclass keeps what they know, and this file gives it the examples.
The keys are TFDS's too. TFDS orders examples by a hash of their key, so the order is that of any other copy of the set.
"""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.io
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from tqdm import tqdm

from big_distill.data.idx import MAX_BYTES, read_idx
from big_distill.errors import ConfigError, DataError, nearest
from big_distill.files.checksums import sha256

Example = dict[str, Any]  # 'image' holds pixels, stored as PNG, or the bytes of an image file, stored unchanged

_MAX_BYTES = MAX_BYTES  # limit of one unpacked archive; the largest, Flowers-102's images, needs a sixth of it


class Contents(NamedTuple):
    """Holds the examples and classes of a set's archives, validated."""

    splits: dict[str, list[Example]]
    class_names: list[str] | None = None  # None unless TFDS, too, reads them from an archive


def prepare(
    dataset: str, archives_dir: pathlib.Path, data_dir: pathlib.Path | None = None, overwrite: bool = False
) -> pathlib.Path:
    """Makes the set, unless it is there already. It reads and checks every archive before it writes anything.

    Args:
      dataset: one of `DATASETS`.
      archives_dir: holds the archives under upstream's names.
      data_dir: root of all TFDS sets; None means $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      overwrite: True to make it again; the old one stays until the new one is complete.

    Returns:
      The directory of the set, `data_dir/dataset/version`.

    Raises:
      ConfigError: `dataset` is not one of `DATASETS`.
      DataError: an archive is missing, damaged or not what its name says, or the set cannot be written.
    """
    target = directory(dataset, data_dir)
    if is_prepared(target) and not overwrite:
        return target
    files = _find(dataset, archives_dir.expanduser())
    contents = _READERS[dataset](files)
    sums = _sums(dataset, files)
    root = target.parent.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{dataset}-", dir=root) as scratch:
            complete = _write(dataset, contents, sums, scratch)
            target.parent.mkdir(exist_ok=True)
            if overwrite and target.exists():
                target.rename(f"{scratch}/old")
            complete.rename(target)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error}") from error
    return target


def directory(dataset: str, data_dir: pathlib.Path | None = None) -> pathlib.Path:
    """Returns the directory where TFDS looks for the set: `data_dir/dataset/version`."""
    root = data_dir or pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    return root.expanduser() / dataset / str(_upstream(dataset).VERSION)


def is_prepared(target: pathlib.Path) -> bool:
    """Returns True if this directory holds a set, whoever made it."""
    return (target / "dataset_info.json").is_file()


def checksums(builder: tfds.core.DatasetBuilder) -> dict[str, str]:
    """Maps the archives of a set, by name, to their SHA-256. The result is empty if TFDS itself prepared the set."""
    sources = builder.info.as_proto.data_source_accesses
    return {source.url.url: source.url.checksum for source in sources if source.url.checksum}


def _upstream(dataset: str) -> Any:
    """Returns TFDS's own builder class."""
    if dataset not in DATASETS:
        raise ConfigError(f"dataset {dataset!r} cannot be prepared from archives{nearest(dataset, DATASETS)}")
    return tfds.builder_cls(dataset)


def _find(dataset: str, archives_dir: pathlib.Path) -> dict[str, pathlib.Path]:
    """Finds all archives of the set, and maps their names to their paths."""
    urls = {info.filename: url for url, info in _upstream(dataset).url_infos.items()}
    files = {name: archives_dir / name for name in sorted(urls)}
    if missing := [name for name, path in files.items() if not path.is_file()]:
        raise DataError(f"{archives_dir} lacks {', '.join(missing)}: {dataset} is at {urls[missing[0]]}")
    return files


def _sums(dataset: str, files: Mapping[str, pathlib.Path]) -> dict[str, str]:
    """Maps archive names to their SHA-256, and warns of each that differs from upstream's."""
    sums = {name: sha256(path) for name, path in files.items()}
    for info in _upstream(dataset).url_infos.values():
        path, found = files[info.filename], sums[info.filename]
        if found != info.checksum:
            logging.warning("%s is not upstream's: SHA-256 %s, expected %s", path, found, info.checksum)
    return sums


def _write(dataset: str, contents: Contents, sums: Mapping[str, str], root: str) -> pathlib.Path:
    """Writes the set below `root` and returns its directory."""
    upstream: Any = _upstream(dataset)

    class FromArchives(upstream, skip_registration=True):  # type: ignore[call-arg]
        name = upstream.name

        def _split_generators(self, _: Any) -> dict[str, Iterator[tuple[int | str, Example]]]:
            return {split: self._generate_examples(examples) for split, examples in contents.splits.items()}

        def _generate_examples(self, examples: list[Example]) -> Iterator[tuple[int | str, Example]]:
            for index, example in enumerate(examples):
                image = example["image"]
                if isinstance(image, np.ndarray):
                    image = Image.fromarray(image)  # TFDS needs TensorFlow for an array, but not for a PIL image
                yield example.get("file_name", index), example | {"image": image}
                bar.update()

    tfds.disable_progress_bar()  # TFDS's bar does not know the total
    with (
        contextlib.redirect_stdout(io.StringIO()),  # TFDS prints lines about a download, with the temporary path
        tqdm(total=sum(map(len, contents.splits.values())), desc=dataset, unit=" examples", disable=None) as bar,
    ):
        builder = FromArchives(data_dir=root, file_format="array_record")
        if contents.class_names:
            builder.info.features["label"].names = contents.class_names
        for archive, checksum in sums.items():
            builder.info.add_url_access(archive, checksum)  # the name, not upstream's URL: the file may be another
        builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def _read_mnist(files: Mapping[str, pathlib.Path]) -> Contents:
    """Reads MNIST or Fashion-MNIST: each split has an IDX file of images `[N, 28, 28]` and one of labels `[N]`."""
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        image_file, label_file = files[f"{prefix}-images-idx3-ubyte.gz"], files[f"{prefix}-labels-idx1-ubyte.gz"]
        images, labels = _read_items(image_file, 28, 28), _read_items(label_file)
        if len(images) != len(labels):
            raise DataError(f"{image_file} holds {len(images)} images, but {label_file.name} {len(labels)} labels")
        _check_range(label_file, "labels", labels, 0, 9)
        splits[split] = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
    return Contents(splits)


def _read_items(path: pathlib.Path, *shape: int) -> np.ndarray:
    """Reads an IDX file of items of this shape: uint8 [N, *shape]."""
    items = read_idx(path, _MAX_BYTES)
    if items.shape[1:] != shape:
        raise DataError(f"{path} holds items of {list(items.shape[1:])}, expected {list(shape)}")
    return items


def _read_cifar10(files: Mapping[str, pathlib.Path]) -> Contents:
    """Reads CIFAR-10, binary version. A row is one byte of label and 3 x 32 x 32 bytes of pixels, channels first."""
    (path,) = files.values()
    batches = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
    meta = "batches.meta.txt"
    members = _read_members(path, "cifar-10-batches-bin/", [*batches["train"], *batches["test"], meta])
    class_names = members[meta].decode(errors="replace").split()
    if len(class_names) != 10 or len(set(class_names)) != 10:
        raise DataError(f"{path}: {meta} holds {class_names}, expected ten class names")
    splits = {}
    for split, names in batches.items():
        data = b"".join(members[name] for name in names)
        if len(data) % 3073 or not data:
            raise DataError(f"{path}: {', '.join(names)} hold {len(data)} bytes, expected a multiple of 3073")
        rows = np.frombuffer(data, np.uint8).reshape(-1, 3073)
        _check_range(path, f"{split} labels", rows[:, 0], 0, 9)
        splits[split] = [
            {"id": f"{split}_{i:05d}", "image": row[1:].reshape(3, 32, 32).transpose(1, 2, 0), "label": row[0]}
            for i, row in enumerate(rows)
        ]
    return Contents(splits, class_names)


def _read_flowers(files: Mapping[str, pathlib.Path]) -> Contents:
    """Reads Oxford Flowers-102: JPEG files, labels, and the images of each split. Labels and images count from 1."""
    images_file, labels_file, splits_file = (files[n] for n in ("102flowers.tgz", "imagelabels.mat", "setid.mat"))
    (labels,) = _read_mat(labels_file, "labels")
    train, test, validation = _read_mat(splits_file, "trnid", "tstid", "valid")
    everything = np.concatenate([train, test, validation])
    _check_range(labels_file, "labels", labels, 1, 102)
    _check_range(splits_file, "image numbers", everything, 1, len(labels))
    if len(np.unique(everything)) != len(everything):
        raise DataError(f"{splits_file} lists an image twice")
    names = {number: f"image_{number:05d}.jpg" for number in everything.tolist()}
    images = _read_members(images_file, "jpg/", names.values())

    def examples(numbers: np.ndarray) -> list[Example]:
        return [
            {"file_name": names[number], "image": images[names[number]], "label": int(labels[number - 1]) - 1}
            for number in numbers.tolist()
        ]

    return Contents({"train": examples(train), "test": examples(test), "validation": examples(validation)})


def _read_mat(path: pathlib.Path, *names: str) -> list[np.ndarray]:
    """Reads row vectors of integers `[1, N]` from a MATLAB file, each as `[N]`."""
    with _reading(path):
        variables = scipy.io.loadmat(path)
    for name in names:
        value = variables.get(name, np.empty(0))
        if value.shape != (1, value.size) or value.dtype.kind not in "iu" or not value.size:
            raise DataError(f"{path}: {name} is {value.dtype} {list(value.shape)}, expected integers [1, N]")
    return [variables[name][0] for name in names]


def _read_members(path: pathlib.Path, folder: str, names: Iterable[str]) -> dict[str, bytes]:
    """Reads the named files of a tar archive into memory in one pass. It extracts nothing."""
    wanted = {folder + name: name for name in names}
    found: dict[str, bytes] = {}
    unpacked = 0
    with _reading(path), tarfile.open(path) as tar:
        for member in tar:
            name = wanted.get(member.name.removeprefix("./"))
            if name and member.isfile() and (file := tar.extractfile(member)):  # no link, no device
                _check_unpacked(unpacked := unpacked + member.size)
                found[name] = file.read()
    if missing := [name for name in wanted.values() if name not in found]:
        raise DataError(f"{path} lacks {folder}{missing[0]} ({len(missing)} of {len(wanted)} files are missing)")
    return found


def _check_unpacked(size: int) -> None:
    if size > _MAX_BYTES:
        raise ValueError(f"it unpacks to more than {_MAX_BYTES} bytes")


def _check_range(path: pathlib.Path, what: str, values: np.ndarray, low: int, high: int) -> None:
    if values.min() < low or values.max() > high:
        raise DataError(f"{path}: {what} are from {values.min()} to {values.max()}, expected {low} to {high}")


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns any error of an archive's reader into a DataError that names the archive."""
    try:
        yield
    except Exception as error:  # gzip, tarfile and scipy.io raise a dozen kinds on damaged files
        first_line = str(error).partition("\n")[0]
        raise DataError(f"{path} is truncated or of another format: {first_line}") from error


_READERS: dict[str, Callable[[Mapping[str, pathlib.Path]], Contents]] = {
    "mnist": _read_mnist,
    "fashion_mnist": _read_mnist,
    "cifar10": _read_cifar10,
    "oxford_flowers102": _read_flowers,
}
DATASETS = tuple(_READERS)

"""Checks that tiny archives with upstream's names become TFDS sets, and damaged ones become one clear line."""

import gzip
import hashlib
import io
import pathlib
import struct
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.hashing import Hasher

import big_distill
from big_distill import prepare
from big_distill.data import archives
from big_distill.errors import ConfigError, DataError

VERSIONS = {"mnist": "3.0.1", "fashion_mnist": "3.0.1", "cifar10": "3.0.2", "oxford_flowers102": "2.1.1"}


def idx(items, magic=None, count=None):
    shape = (len(items) if count is None else count, *items.shape[1:])
    return gzip.compress(struct.pack(f">{1 + items.ndim}I", magic or 0x0800 + items.ndim, *shape) + items.tobytes())


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def mnist(directory, seed=0):
    """Writes the archives; returns split -> [(pixels, label)] in the order of the archive."""
    rng = np.random.default_rng(seed)
    expected = {}
    for split, prefix, count in (("train", "train", 12), ("test", "t10k", 5)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        labels = rng.integers(0, 10, count, np.uint8)
        (directory / f"{prefix}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (directory / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
        expected[split] = list(zip(images[..., None], labels, strict=True))
    return expected


CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(directory, extra=None):
    rng = np.random.default_rng(1)
    expected = {"train": [], "test": []}
    members = {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        images, labels = rng.integers(0, 256, (3, 32, 32, 3), np.uint8), rng.integers(0, 10, 3, np.uint8)
        rows = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(3, -1)], 1)
        members[f"cifar-10-batches-bin/{name}"] = rows.tobytes()
        expected["test" if "test" in name else "train"] += zip(images, labels, strict=True)
    members["cifar-10-batches-bin/batches.meta.txt"] = "\n".join([*CIFAR_NAMES, ""]).encode()
    write_tar(directory / "cifar-10-binary.tar.gz", members | (extra or {}))
    return expected


FLOWER_SPLITS = {"trnid": [4, 1], "tstid": [2, 7, 6], "valid": [3, 5]}


def flowers(directory, labels=(102, 1, 51, 2, 77, 78, 9), drop=(), **splits):
    rng = np.random.default_rng(2)
    files = []
    for size in range(40, 47):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (size, 50, 3), np.uint8)).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    members = {f"jpg/image_{i:05d}.jpg": data for i, data in enumerate(files, 1) if i not in drop}
    write_tar(directory / "102flowers.tgz", members)
    scipy.io.savemat(directory / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    ids = {name: np.array([value], np.uint16) for name, value in (FLOWER_SPLITS | splits).items()}
    scipy.io.savemat(directory / "setid.mat", ids)
    names = {"train": "trnid", "test": "tstid", "validation": "valid"}
    return {
        split: [(f"image_{i:05d}.jpg", files[i - 1], labels[i - 1] - 1) for i in FLOWER_SPLITS[name]]
        for split, name in names.items()
    }


WRITERS = {"mnist": mnist, "fashion_mnist": mnist, "cifar10": cifar10, "oxford_flowers102": flowers}


@pytest.fixture
def source(tmp_path):
    directory = tmp_path / "archives"
    directory.mkdir()
    return directory


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "tfds"


def read(dataset, data_dir, split, **kwargs):
    return list(tfds.builder(dataset, data_dir=data_dir).as_data_source(split=split, **kwargs))


def pairs(examples):
    """Returns sorted (shape, pixels, label): TFDS shuffles, and MNIST's examples have no name."""
    return sorted((image.shape, image.tobytes(), int(label)) for image, label in examples)


def assert_holds(data_dir, dataset, expected):
    for split, examples in expected.items():
        found = read(dataset, data_dir, split)
        assert pairs((e["image"], e["label"]) for e in found) == pairs(examples)


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "cifar10"])
def test_pixels_and_labels_survive_exactly(dataset, source, data_dir):
    expected = WRITERS[dataset](source)
    target = archives.prepare(dataset, source, data_dir)
    assert target == data_dir / dataset / VERSIONS[dataset]
    assert_holds(data_dir, dataset, expected)
    assert [path.name for path in data_dir.iterdir()] == [dataset]
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_cifar10_ids_follow_the_archive_and_class_names_come_from_it(source, data_dir):
    expected = cifar10(source)
    archives.prepare("cifar10", source, data_dir)
    for split, examples in expected.items():
        for example in read("cifar10", data_dir, split):
            name, _, index = example["id"].decode().rpartition("_")
            image, label = examples[int(index)]
            assert name == split
            np.testing.assert_array_equal(example["image"], image)
            assert example["label"] == label
    assert tfds.builder("cifar10", data_dir=data_dir).info.features["label"].names == CIFAR_NAMES


def test_the_order_is_tfds_own(source, data_dir):
    expected = cifar10(source)
    archives.prepare("cifar10", source, data_dir)
    for split, examples in expected.items():
        order = sorted(range(len(examples)), key=Hasher(split).hash_key)  # upstream's key is the index in the split
        assert [int(e["id"][-5:]) for e in read("cifar10", data_dir, split)] == order


def test_flowers_keep_their_bytes_their_splits_and_labels_from_zero(source, data_dir):
    expected = flowers(source)
    archives.prepare("oxford_flowers102", source, data_dir)
    features = tfds.builder("oxford_flowers102", data_dir=data_dir).info.features
    assert features["label"].num_classes == 102 and features["label"].names[0] == "pink primrose"
    for split, examples in expected.items():
        found = read("oxford_flowers102", data_dir, split, decoders={"image": tfds.decode.SkipDecoding()})
        assert sorted((e["file_name"].decode(), e["image"], e["label"]) for e in found) == sorted(examples)
        for example in read("oxford_flowers102", data_dir, split):
            (data,) = [data for name, data, _ in examples if name == example["file_name"].decode()]
            np.testing.assert_array_equal(example["image"], np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("dataset", archives.DATASETS)
def test_checksums_are_recorded_and_a_difference_from_upstream_is_a_warning(dataset, source, data_dir, caplog):
    WRITERS[dataset](source)
    archives.prepare(dataset, source, data_dir)
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()}
    assert archives.checksums(tfds.builder(dataset, data_dir=data_dir)) == expected
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(message.split(" ")[0] for message in warnings) == sorted(str(source / name) for name in expected)


def test_an_archive_that_is_upstreams_is_no_warning(source, data_dir, caplog, monkeypatch):
    mnist(source)
    builder = tfds.builder_cls("mnist")
    for info in builder.url_infos.values():
        sha256 = hashlib.sha256((source / info.filename).read_bytes()).hexdigest()
        monkeypatch.setattr(info, "checksum", sha256)
    archives.prepare("mnist", source, data_dir)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_set_that_tfds_prepared_has_no_checksums(data_dir):
    assert archives.checksums(tfds.builder("mnist", data_dir=data_dir)) == {}


def truncate(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def html(path):
    path.write_bytes(b"<!DOCTYPE html><title>404</title>")


def replace_member(path, name, data):
    cifar10(path.parent, {f"cifar-10-batches-bin/{name}": data})


IMAGES, LABELS, CIFAR = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", "cifar-10-binary.tar.gz"
JPEGS, FLOWER_LABELS, FLOWER_IDS = "102flowers.tgz", "imagelabels.mat", "setid.mat"
PIXELS = np.zeros((12, 28, 28), np.uint8)
MNIST_DAMAGES = {
    "missing": (IMAGES, pathlib.Path.unlink, "lacks train-images.*https://"),
    "truncated": (IMAGES, truncate, "truncated"),
    "empty": (LABELS, lambda path: path.write_bytes(b""), "IDX"),
    "not gzip": (LABELS, html, "expected the IDX magic"),
    "wrong magic": (IMAGES, lambda path: path.write_bytes(idx(PIXELS, magic=0xD03)), "0x00000d03.*0x0000080N"),
    "wrong size of items": (IMAGES, lambda path: path.write_bytes(idx(PIXELS[:, 4:])), r"\[24, 28\]"),
    "count is not the content": (IMAGES, lambda path: path.write_bytes(idx(PIXELS, count=13)), "13 items"),
    "no items": (LABELS, lambda path: path.write_bytes(idx(PIXELS[:0, 0, 0])), "0 items"),
    "image without label": (IMAGES, lambda path: path.write_bytes(idx(PIXELS[1:])), "11 images.*12 labels"),
    "no such label": (LABELS, lambda path: path.write_bytes(idx(np.full(5, 10, np.uint8))), "10, expected 0 to 9"),
}
CIFAR10_DAMAGES = {
    "truncated": (CIFAR, truncate, "truncated"),
    "truncated at the end": (CIFAR, lambda path: truncate(path, 0.999), "truncated"),
    "not tar": (CIFAR, html, "another format"),
    "another tar": (
        CIFAR,
        lambda path: write_tar(path, {"cifar-100-binary/train.bin": b""}),
        "data_batch_1.bin.*7 of 7",
    ),
    "broken rows": (CIFAR, lambda path: replace_member(path, "test_batch.bin", b"123"), "3 bytes.*3073"),
    "no such label": (CIFAR, lambda path: replace_member(path, "test_batch.bin", bytes([10]) * 3073), "to 10, exp"),
    "too few names": (CIFAR, lambda path: replace_member(path, "batches.meta.txt", b"cat\ndog\n"), "ten class names"),
}
FLOWERS_DAMAGES = {
    "missing": (FLOWER_IDS, pathlib.Path.unlink, "lacks setid.mat"),
    "truncated tgz": (JPEGS, truncate, "truncated"),
    "truncated mat": (FLOWER_IDS, truncate, "truncated"),
    "not mat": (FLOWER_LABELS, html, "another format"),
    "another mat": (FLOWER_IDS, lambda path: scipy.io.savemat(path, {"labels": [[1]]}), "trnid is"),
    "fractions": (FLOWER_LABELS, lambda path: scipy.io.savemat(path, {"labels": [[1.5] * 7]}), "float64 .*integers"),
    "label from zero": (FLOWER_LABELS, lambda path: flowers(path.parent, labels=range(7)), "from 0 to 6, expected 1"),
    "no such image": (FLOWER_IDS, lambda path: flowers(path.parent, valid=[3, 8]), "from 1 to 8, expected 1 to 7"),
    "image in two splits": (FLOWER_IDS, lambda path: flowers(path.parent, valid=[3, 4]), "twice"),
    "image not in the tar": (JPEGS, lambda path: flowers(path.parent, drop=(6, 7)), r"image_00007.jpg \(2 of 7"),
}
DAMAGES = [
    pytest.param(dataset, *damage, id=f"{dataset}: {title}")
    for dataset, damages in (
        ("mnist", MNIST_DAMAGES),
        ("cifar10", CIFAR10_DAMAGES),
        ("oxford_flowers102", FLOWERS_DAMAGES),
    )
    for title, damage in damages.items()
]


@pytest.mark.parametrize(("dataset", "name", "harm", "message"), DAMAGES)
def test_a_damaged_archive_is_named_and_nothing_is_written(dataset, name, harm, message, source, data_dir):
    WRITERS[dataset](source)
    harm(source / name)
    with pytest.raises(DataError, match=message) as caught:
        archives.prepare(dataset, source, data_dir)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert not data_dir.exists()


def test_all_files_are_looked_for_before_any_is_read(source, data_dir):
    mnist(source)
    (source / "t10k-images-idx3-ubyte.gz").write_bytes(b"damaged")
    (source / IMAGES).unlink()
    (source / LABELS).unlink()
    with pytest.raises(DataError, match=f"lacks {LABELS}, {IMAGES}"):
        archives.prepare("mnist", source, data_dir)


def test_members_of_a_tar_are_read_by_name_alone(source, data_dir, tmp_path):
    names = ["../escaped", f"{tmp_path}/escaped", "cifar-10-batches-bin/../../escaped", "/cifar-10-batches-bin/x"]
    others = ["elsewhere/data_batch_1.bin", "data_batch_1.bin", "cifar-10-batches-bin/../data_batch_1.bin"]
    expected = cifar10(source, dict.fromkeys([*names, *others], b"x"))
    archives.prepare("cifar10", source, data_dir)
    assert_holds(data_dir, "cifar10", expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archives", "tfds"]


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE", "DIRTYPE"])
@pytest.mark.parametrize("target", ["/etc/passwd", "../../secret", "test_batch.bin", "data_batch_1.bin"])
def test_what_is_no_file_in_a_tar_is_not_followed(kind, target, source, data_dir):
    """The member is a link (also to its neighbour or to itself), a device, or a pipe that nobody writes to."""
    cifar10(source)
    (source / "secret").write_bytes(bytes(3073))
    with tarfile.open(source / CIFAR) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(source / CIFAR, "w:gz") as tar:
        for member, data in members:
            if member.name.endswith("data_batch_1.bin"):
                member.type, member.linkname, member.size, data = getattr(tarfile, kind), target, 0, b""
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/data_batch_1.bin"):
        archives.prepare("cifar10", source, data_dir)
    assert not data_dir.exists()


@pytest.mark.parametrize(("dataset", "name"), [("mnist", IMAGES), ("cifar10", CIFAR)])
def test_an_archive_that_unpacks_to_too_much_is_refused(dataset, name, source, data_dir, monkeypatch):
    WRITERS[dataset](source)
    monkeypatch.setattr(archives, "_MAX_BYTES", 9000)  # at least a tenth of what each of them holds
    with pytest.raises(DataError, match=f"{name} .*it unpacks to more than 9000 bytes"):
        archives.prepare(dataset, source, data_dir)


def test_a_set_that_is_there_is_left_alone_unless_told_to_overwrite(source, data_dir):
    old = mnist(source)
    archives.prepare("mnist", source, data_dir)
    new = mnist(source, seed=7)
    archives.prepare("mnist", source, data_dir)
    assert_holds(data_dir, "mnist", old)
    target = archives.prepare("mnist", source, data_dir, overwrite=True)
    assert_holds(data_dir, "mnist", new)
    assert sorted(path.name for path in data_dir.rglob("*") if path.is_dir()) == [target.name, "mnist"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_half_way_changes_nothing(existing, source, data_dir, monkeypatch):
    expected = {}
    if existing:
        expected = mnist(source)
        archives.prepare("mnist", source, data_dir)
    before = sorted(data_dir.rglob("*"))
    mnist(source, seed=7)
    images = iter([Image.fromarray(PIXELS[0])] * 8)

    def fromarray(_):
        if image := next(images, None):
            return image
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(archives.Image, "fromarray", fromarray)
        with pytest.raises(DataError, match=r"3\.0\.1 cannot be written: No space left"):
            archives.prepare("mnist", source, data_dir, overwrite=existing)
    assert sorted(data_dir.rglob("*")) == before
    assert_holds(data_dir, "mnist", expected)


def test_an_unknown_set_names_the_nearest(source, data_dir):
    with pytest.raises(ConfigError, match=r"'minst'.*did you mean 'mnist'"):
        archives.prepare("minst", source, data_dir)


def test_data_dir_defaults_to_tfds_own(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert archives.directory("mnist") == tmp_path / "mnist" / "3.0.1"
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert archives.directory("mnist") == tmp_path / "tensorflow_datasets" / "mnist" / "3.0.1"


def run(*flags):
    """Runs the command in a process of its own; its last line says whether it imported TensorFlow."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('big_distill.prepare', run_name='__main__', alter_sys=True)\n"
        "finally:\n    print('tensorflow' in sys.modules)"
    )
    root = pathlib.Path(big_distill.__file__).parents[1]
    return subprocess.run([sys.executable, "-c", code, *flags], cwd=root, capture_output=True, text=True)


@pytest.mark.full
def test_the_command_says_where_the_set_is_and_how_to_use_it_and_needs_no_tensorflow(source, data_dir):
    flowers(source)
    flags = ("--dataset=oxford_flowers102", f"--archives={source}", f"--data_dir={data_dir}")
    target = data_dir / "oxford_flowers102" / "2.1.1"

    first = run(*flags)
    assert first.returncode == 0
    line, tensorflow = first.stdout.splitlines()
    assert line.startswith(f"oxford_flowers102 is in {target}: train 2, test 3, validation 2 examples")
    assert f"--data_dir={data_dir}" in line and "--config=configs/" in line
    assert tensorflow == "False"
    assert [line.partition(" is not ")[0].rpartition("/")[2] for line in first.stderr.splitlines()] == sorted(
        path.name for path in source.iterdir()
    )  # a warning for each archive and, without a terminal, no progress bar

    truncate(source / JPEGS)
    failed = run(*flags, "--overwrite")
    assert failed.returncode == 3 and len(failed.stderr.splitlines()) == 1 and JPEGS in failed.stderr
    assert target.exists()


def test_the_command_leaves_a_prepared_set_alone(source, data_dir, monkeypatch, capsys):
    mnist(source)
    target = archives.prepare("mnist", source, data_dir)
    values = types.SimpleNamespace(dataset="mnist", archives="gone", data_dir=str(data_dir), overwrite=False)
    monkeypatch.setattr(prepare, "flags", types.SimpleNamespace(FLAGS=values))
    prepare.main()
    assert (
        f"mnist is already in {target} (--overwrite makes it again); use it with --config=" in capsys.readouterr().out
    )


def test_every_set_has_a_config_to_go_on_with():
    assert set(prepare.NEXT) == set(archives.DATASETS)

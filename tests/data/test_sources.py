import io
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from big_distill.config import SourceConfig
from big_distill.data import Source, array_source
from big_distill.data.decode import decode
from big_distill.data.sources import open_source
from big_distill.data.split_names import split_ids
from big_distill.errors import ConfigError, DataError


def open_(name, split="train", num_classes=10, image_size=8, channels=3, **options):
    config = SourceConfig(name=name, **options)
    return open_source(config, split, num_classes=num_classes, image_size=image_size, channels=channels)


def read(source):
    """Returns (pixels, labels) of all examples."""
    examples = source.read(np.arange(source.num_examples))
    return [decode(data, 1) for data, _ in examples], [label for _, label in examples]


# Splits


LENGTHS = {"train": 37, "test": 11}
SPLITS = ["train", "test", "train+test", "test+train", "all", "train[:90%]", "train[90%:]", "test[2:5]", "train[-3:]"]
SPLITS += ["train[:50%]+test[50%:]", "train[33%:66%]", "train[:0%]+test", "train + test[:1]"]


@pytest.mark.parametrize(
    ("split", "reason"),
    [
        ("nope", "Unknown split 'nope'"),
        ("train+nope", "Unknown split 'nope'"),
        ("train[", "Unrecognized split format: 'train\\['"),
        ("train[100:]", "Requested slice"),
        (" train", "Unrecognized split format"),
        ("", "Unrecognized split format"),
    ],
)
def test_a_split_that_is_not_there(split, reason):
    with pytest.raises(DataError, match=f"^birds: {reason}.*; its splits are train, test$"):
        split_ids("birds", split, LENGTHS)


@pytest.mark.parametrize("split", ["train[:0]", "train[5:3]", "train[:1%]"])
def test_an_empty_split(split):
    with pytest.raises(DataError, match="holds no examples"):
        split_ids("birds", split, LENGTHS)


# Arrays, digits, random


def test_fingerprints_of_arrays_follow_their_bytes():
    images, labels = np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 0, 1])
    fingerprints = {array_source("a", images, labels, "xy").fingerprint}
    assert fingerprints == {array_source("b", images.copy(), labels.astype(np.int32), "xy").fingerprint}
    for other in (
        array_source("a", images + 1, labels, "xy"),
        array_source("a", images.reshape(4, 4, 1), labels, "xy"),
        array_source("a", images, 1 - labels, "xy"),
        array_source("a", images),
    ):
        fingerprints.add(other.fingerprint)
    assert len(fingerprints) == 5


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (
            np.arange(4) % 3 + 1,
            "abc",
            "own #2 has the label 3, but there are 3 class names: expected 0 to 2, or -1 for",
        ),
        (np.array([0, -2, 1, 2]), "abc", "own #1 has the label -2, but there are 3"),
        (np.eye(4), "abcd", r"own: labels of shape \(4, 4\); labels.argmax\(1\) makes integers of one-hot ones"),
        (
            np.zeros(4),
            "abc",
            r"own: labels have shape \(4,\) and dtype float64, expected 4 integers, one for each image",
        ),
        (np.zeros(3, int), "abc", r"labels have shape \(3,\)"),
        (
            np.zeros((4, 1), int),
            "abc",
            r"labels have shape \(4, 1\) and dtype int64, expected 4 integers, one for each",
        ),
        (np.zeros(4, int), "", "own: labels need class_names, a name for each class in the order of the labels"),
    ],
)
def test_labels_that_cannot_be(labels, names, message):
    with pytest.raises(DataError, match=message):
        array_source("own", np.zeros((4, 2, 2), np.uint8), labels, names)


def test_an_example_may_have_no_label():
    source = array_source("own", np.zeros((3, 2, 2), np.uint8), [0, -1, 1], "ab")
    assert source.num_classes == 2 and [label for _, label in source.read(np.arange(3))] == [0, -1, 1]


def test_digits():
    splits = {split: open_("digits", split) for split in ("train", "validation", "test")}
    assert [s.num_examples for s in splits.values()] == [1200, 200, 397]
    assert len({s.fingerprint for s in splits.values()}) == 3
    seen = []
    for source in splits.values():
        assert source.num_classes == 10 and source.class_names == tuple("0123456789")
        images, labels = read(source)
        counts = np.bincount(labels, minlength=10)
        assert np.abs(counts / source.num_examples - 0.1).max() < 0.01  # stratified
        seen += [image.tobytes() for image in images]
    assert images[0].shape == (8, 8, 1) and images[0].max() > 200
    assert len(set(seen)) == 1797  # the splits are disjoint and complete
    images, _ = read(open_("digits", "all"))
    assert set(np.unique(images)) == {round(value * 255 / 16) for value in range(17)}


def test_digits_are_the_same_everywhere():
    assert open_("digits").fingerprint[:16] == "b59b7409323b0df9"


def test_random():
    splits = {split: open_("random", split, num_classes=5) for split in ("train", "validation", "test")}
    assert [s.num_examples for s in splits.values()] == [64, 32, 32]
    for source in splits.values():
        (pixels, label), *_ = source.read(np.array([7]))
        assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and label == 7 % 5
    assert len({s.fingerprint for s in splits.values()}) == 3
    assert open_("random", num_classes=5).fingerprint == splits["train"].fingerprint


# TFDS


class Birds(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds 37 + 11 images of 4 x 4 px, whose grey is the example's number. A mask and a second label come first."""

    VERSION = tfds.core.Version("1.0.0")
    LABEL, SUPERVISED = "label", None
    CLASSES = tfds.features.ClassLabel(names=["wren", "kite"])

    def _info(self):
        features = {
            "attribute": tfds.features.ClassLabel(num_classes=3),
            "a_mask": tfds.features.Image(shape=(None, None, 1)),
            "image": tfds.features.Image(shape=(None, None, 3)),
            self.LABEL: self.CLASSES,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=self.SUPERVISED
        )

    def _split_generators(self, _):
        return {"train": self._generate_examples(0, 37), "test": self._generate_examples(37, 48)}

    def _generate_examples(self, start, stop):
        for number in range(start, stop):
            files = {}
            for key, mode in (("image", "RGB"), ("a_mask", "L")):
                files[key] = io.BytesIO()
                Image.new(mode, (4, 4), (number,) * 3 if mode == "RGB" else 0).save(files[key], "PNG")
                files[key].seek(0)
            yield number, {**files, "attribute": 2, self.LABEL: str(number) if self.LABEL == "name" else number % 2}


class Swifts(Birds, skip_registration=True):
    """Builds a set whose label is an integer without names."""

    CLASSES = np.int64


class Terns(Birds, skip_registration=True):
    """Builds a set that names a text as what is learned, and the mask as its image."""

    SUPERVISED = ("a_mask", "name")
    LABEL, CLASSES = "name", tfds.features.Text()


class Owls(Birds, skip_registration=True):
    LABEL, SUPERVISED = "species", ("image", "species")


class Gulls(Birds, skip_registration=True):
    LABEL = "species"


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    tfds.disable_progress_bar()
    Birds(data_dir=data_dir, file_format="array_record").download_and_prepare()
    return str(data_dir)


def test_tfds(birds, monkeypatch):
    source = open_("birds", data_dir=birds)
    assert (source.num_examples, source.num_classes, source.class_names) == (37, 2, ("wren", "kite"))
    images, labels = read(source)
    numbers = [int(image[0, 0, 0]) for image in images]
    assert sorted(numbers) == list(range(37)) and labels == [number % 2 for number in numbers]
    assert isinstance(source.read(np.array([3]))[0][0], bytes)
    assert source.example_name(3) == "birds train #3"
    monkeypatch.setenv("TFDS_DATA_DIR", birds)
    assert open_("birds").fingerprint == source.fingerprint
    assert open_("birds", "train[:20]").fingerprint != source.fingerprint


def test_a_tfds_set_says_which_label_is_learned(tmp_path):
    for builder in (Owls, Gulls):
        builder(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_("owls", data_dir=str(tmp_path))
    assert source.class_names == ("wren", "kite")
    images, labels = read(source)
    assert labels == [int(image[0, 0, 0]) % 2 for image in images]
    with pytest.raises(DataError, match=r"^gulls has labels, attribute, species, and does not say which"):
        open_("gulls", data_dir=str(tmp_path))
    assert open_("gulls", data_dir=str(tmp_path), label="species").class_names == ("wren", "kite")
    with pytest.raises(ConfigError, match=r"config.source.label='specie' is no label; did you mean 'species'\?"):
        open_("gulls", data_dir=str(tmp_path), label="specie")


def test_what_a_tfds_set_calls_its_image_is_taken_and_a_label_that_is_no_class_is_refused(tmp_path):
    Terns(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(
        DataError, match=r"^terns has labels, attribute, and says that 'name' is to be learned, which is"
    ):
        open_("terns", data_dir=str(tmp_path))
    source = open_("terns", data_dir=str(tmp_path), label="attribute")
    images, labels = read(source)
    assert set(labels) == {2} and {int(image.max()) for image in images} == {0}  # the mask is black


def test_an_integer_without_names_is_a_label_of_the_runs_classes(tmp_path):
    Swifts(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    source = open_("swifts", data_dir=str(tmp_path), num_classes=2)
    assert (source.num_classes, source.class_names) == (2, ("0", "1"))
    images, labels = read(source)
    assert labels == [int(image[0, 0, 0]) % 2 for image in images]


def test_another_version_of_a_tfds_set_is_another(birds, tmp_path):
    """The examples are the same, but the `fingerprint` differs, so a run refuses to go on with it and names both."""
    shutil.copytree(f"{birds}/birds/1.0.0", tmp_path / "birds" / "1.0.1")
    info = tmp_path / "birds" / "1.0.1" / "dataset_info.json"
    info.write_text(info.read_text().replace("1.0.0", "1.0.1"))
    before, after = open_("birds", data_dir=birds), open_("birds", data_dir=str(tmp_path))
    assert (before.name, after.name) == ("birds/1.0.0 train", "birds/1.0.1 train")
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_those_of_tfds(birds, split):
    builder = tfds.builder_from_directory(f"{birds}/birds/1.0.0")
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {"test": 11, "train": 37}
    lengths = {name: info.num_examples for name, info in builder.info.splits.items()}

    def numbers(split):
        return [int(example["image"][0, 0, 0]) for example in builder.as_data_source(split)]

    everything = [number for name in lengths for number in numbers(name)]
    assert [everything[i] for i in split_ids("birds", split, lengths)] == numbers(split)
    images, _ = read(open_("birds", split, data_dir=birds))
    assert [int(image[0, 0, 0]) for image in images] == numbers(split)


def test_tfds_set_that_is_not_prepared(tmp_path):
    command = rf"python -m big_distill\.prepare --dataset=mnist --archives=DIR --data_dir={tmp_path}$"
    with pytest.raises(DataError, match=command):
        open_("mnist", data_dir=str(tmp_path))


def test_tfds_set_that_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"big_distill\[tf\].*tfds build food101 --file_format=array_record"):
        open_("food101", data_dir=str(tmp_path))


def test_tfds_set_that_cannot_be_made(tmp_path, monkeypatch):
    def builder(*args, **kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(tfds, "builder", builder)
    with pytest.raises(DataError, match=r"^TFDS cannot prepare food101 in .*: OSError: no network; see: .*$"):
        open_("food101", data_dir=str(tmp_path))


@pytest.mark.parametrize(("name", "near"), [("cifar_10", "cifar10"), ("digit", "digits"), ("food11", "food101")])
def test_a_misspelt_name(tmp_path, name, near):
    with pytest.raises(ConfigError, match=f"config.source.name='{name}' is not known; did you mean '{near}'?"):
        open_(name, data_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["birds-train.array_record-00000-of-00001", "dataset_info.json", "features.json"])
def test_tfds_set_that_is_damaged(birds, tmp_path, name):
    shutil.copytree(birds, tmp_path, dirs_exist_ok=True)
    (tmp_path / "birds" / "1.0.0" / name).write_bytes(b"{")
    with pytest.raises(DataError, match=r"cannot be read: \w+"):
        read(open_("birds", data_dir=str(tmp_path)))


def test_tfds_set_of_another_format(birds, tmp_path):
    shutil.copytree(birds, tmp_path, dirs_exist_ok=True)
    info = tmp_path / "birds" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"is stored as tfrecord: prepare it again as array_record$"):
        open_("birds", data_dir=str(tmp_path))


def test_tfds_unknown_split(birds):
    with pytest.raises(DataError, match="birds: Unknown split 'validation'; its splits are train, test"):
        open_("birds", "validation", data_dir=birds)


# Your own


def own_source(config, split):
    return array_source(f"own {split}", np.zeros((3, 2, 2), np.uint8))


def not_a_source(config, split):
    return 3


def test_own_source():
    source = open_(f"{__name__}:own_source", "test")
    assert isinstance(source, Source) and source.name == "own test"


def test_own_source_of_another_type():
    with pytest.raises(ConfigError, match=r"returned int, expected a Source$"):
        open_(f"{__name__}:not_a_source")


@pytest.mark.full
def test_what_is_imported():
    """TFDS is imported only for its own sets and for slices, TensorFlow never, so that a run starts fast."""
    code = """
import sys
from big_distill.config import SourceConfig
from big_distill.data import pipeline, sources
for name in ('digits', 'random'):
    sources.open_source(SourceConfig(name=name), 'train', num_classes=2, image_size=4, channels=1)
print([module for module in ('tensorflow', 'tensorflow_datasets') if module in sys.modules])
sources.open_source(SourceConfig(name='digits'), 'train[:10%]', num_classes=2, image_size=4, channels=1)
print([module for module in ('tensorflow', 'tensorflow_datasets') if module in sys.modules])
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.splitlines() == ["[]", "['tensorflow_datasets']"]

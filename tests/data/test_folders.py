import os

import numpy as np
import pytest
from PIL import Image

from big_distill.config import SourceConfig
from big_distill.data.decode import decode
from big_distill.data.folders import open_folder
from big_distill.data.reading import Reader
from big_distill.data.sources import check_source, open_source
from big_distill.errors import ConfigError, DataError


def make_files(root, names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(path)


def folder(root, split="train", **options):
    return open_folder(SourceConfig(name="folder", path=str(root), **{"test": None, **options}), split)


def read(source):
    """Returns (grey level, label) of all examples, sorted. The grey level is the number of the file."""
    examples = source.read(np.arange(source.num_examples))
    return sorted((int(decode(data, 1)[0, 0, 0]), label) for data, label in examples)


def test_folder_of_splits(tmp_path):
    make_files(
        tmp_path, ["train/cat/a.png", "train/dog/b.PNG", "train/dog/c.jpeg", "test/dog/d.jpg", "test/emu/.e.png"]
    )
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    train, test = folder(tmp_path), folder(tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog", "emu")  # classes of all splits, empty ones too
    assert (train.num_examples, test.num_examples, test.num_classes) == (3, 1, 3)
    assert read(train) == [(0, 0), (1, 1), (2, 1)]
    assert test.example_name(0) == str(tmp_path / "test" / "dog" / "d.jpg")
    with pytest.raises(DataError, match="Unknown split 'validation'; its splits are test, train"):
        folder(tmp_path, "validation")


def test_folder_of_classes_is_one_shuffled_split(tmp_path):
    make_files(tmp_path, [f"{label}/{i}.png" for label in "ab" for i in range(50)])
    whole, first, second = (folder(tmp_path, split) for split in ("train", "train[:50%]", "train[50%:]"))
    names = [[source.example_name(i) for i in range(source.num_examples)] for source in (whole, first, second)]
    assert len(names[0]) == 100 and names[1] + names[2] == names[0]
    assert 10 < sum(label for _, label in read(first)) < 40  # both classes
    with pytest.raises(DataError, match="its splits are train"):
        folder(tmp_path, "test")


def test_flat_folder_has_no_labels(tmp_path):
    make_files(tmp_path, ["a.jpg", "b.png", ".hidden.png", "empty/.keep.png"])
    source = folder(tmp_path)
    assert (source.num_examples, source.num_classes, source.class_names) == (2, None, ())
    assert [label for _, label in source.read(np.arange(2))] == [-1, -1]


def test_folder_fingerprint_follows_names_and_sizes(tmp_path):
    make_files(tmp_path, ["a/1.png", "b/2.png"])
    before = folder(tmp_path).fingerprint
    assert folder(tmp_path).fingerprint == before
    (tmp_path / "a" / "1.png").write_bytes(b"another size")
    assert folder(tmp_path).fingerprint != before


def test_a_pipe_in_a_folder_is_not_waited_for(tmp_path):
    make_files(tmp_path, ["a/1.png"])
    os.mkfifo(tmp_path / "a" / "2.png")
    with pytest.raises(DataError, match=r"a/2.png is no file, but a directory, pipe or device"):
        folder(tmp_path)


def test_all_that_the_decoder_reads_is_read_and_the_rest_is_told(tmp_path):
    make_files(tmp_path, ["cat/a.jpg", "cat/b.webp", "dog/c.gif", "dog/d.TIFF", "emu/e.ppm", "@eaDir/f.png"])
    (tmp_path / "emu" / "g.jfif").write_bytes((tmp_path / "cat" / "a.jpg").read_bytes())
    (tmp_path / ".emu").mkdir()
    for name in ("cat/notes.txt", "dog/more.txt", "emu/README", "__MACOSX/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    source = folder(tmp_path)
    assert source.class_names == ("cat", "dog", "emu") and source.num_examples == 6
    assert source.remarks == (f"{tmp_path}: 6 image files, 3 classes; ignored: 2 .txt, 1 hidden, 1 without suffix",)
    assert all(data for data, _ in source.read(np.arange(6)))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.heic").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no image files .*; ignored: 1 .heic$"):
        folder(tmp_path / "none")


def test_a_class_without_a_training_image_is_refused_unless_it_is_allowed(tmp_path):
    make_files(tmp_path, ["train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png"])
    (tmp_path / "train" / "emu").mkdir()
    source = folder(tmp_path)
    message = r"has no image of 1 of its classes: emu; --config.source.allow_empty_classes trains without them"
    with pytest.raises(DataError, match=message):
        check_source(source, 2, 3, None)
    check_source(source, 2, 3, None, allow_empty_classes=True)
    assert folder(tmp_path, "train[:1]").empty_classes in (("cat", "emu"), ("dog", "emu"))


def test_a_link_that_leads_nowhere_is_an_image_that_cannot_be_read(tmp_path):
    make_files(tmp_path, ["a/1.png", "a/2.png", "b/1.png"])
    (tmp_path / "b" / "2.png").symlink_to(tmp_path / "gone.png")
    source = folder(tmp_path)
    assert sorted(bool(data) for data, _ in source.read(np.arange(4))) == [False, True, True, True]


def test_folder_without_images(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        folder(tmp_path / "missing")
    with pytest.raises(DataError, match=r"holds no image files \(.jpg, .jpeg, .*\)$"):
        folder(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.source\.path must be set"):
        open_folder(SourceConfig(name="folder"), "train")


def test_a_file_that_went_away_is_read_as_no_bytes(tmp_path):
    make_files(tmp_path, ["a.png", "b.png"])
    source = folder(tmp_path)
    (tmp_path / "a.png").unlink()
    assert sorted(len(data) > 0 for data, _ in source.read(np.arange(2))) == [False, True]


# Layouts: a folder may be a split, a class or neither


CLASSES = [f"{label}/{name}" for label in "ab" for name in ("1.png", "2.png")]
TINY = [*(f"train/{label}/images/{number}.png" for label in "ab" for number in (1, 2)), "val/images/5.png"]
KAGGLE = [*(f"train/{name}" for name in CLASSES), "test/7.png", "test/8.png"]
IGNORED = "ignored 1 images that lie in no class folder, such as {} (see config.source.layout)"


@pytest.mark.parametrize(
    ("names", "split", "classes", "labels", "remark"),
    [
        ([f"{label}/images/{number}.png" for label in "ab" for number in (1, 2)], "train", "ab", [0, 0, 1, 1], None),
        (TINY, "train", "ab", [0, 0, 1, 1], "the split val has no labels"),
        (TINY, "val", "", [-1], None),
        ([*CLASSES, "a/thumbs/1.png"], "train", "ab", [0, 0, 1, 1], IGNORED.format("a/thumbs/1.png")),
        ([*CLASSES, "stray.png"], "train", "ab", [0, 0, 1, 1], IGNORED.format("stray.png")),
        (KAGGLE, "test", "", [-1, -1], "the split test has no labels"),
        (KAGGLE, "train", "ab", [0, 0, 1, 1], "the split test has no labels"),
        (["train/1.png", "test/2.png"], "train", "", [-1], None),
        (["Train/a/1.png", "notes/2.png"], "Train", "a", [0], IGNORED.format("notes/2.png")),
        ([*KAGGLE, "docs/figures/3.png"], "train", "ab", [0, 0, 1, 1], IGNORED.format("docs/figures/3.png")),
        (["e\u0301/1.png", "\u00e9/2.png", "z/3.png"], "train", ["z", "\u00e9"], [0, 1, 1], None),
        (["__MACOSX/a/1.png", *CLASSES], "train", "ab", [0, 0, 1, 1], None),
    ],
)  # fmt: skip
def test_layouts(tmp_path, names, split, classes, labels, remark):
    make_files(tmp_path, names)
    source = folder(tmp_path, split)
    assert source.class_names == tuple(classes)
    assert sorted(label for _, label in read(source)) == labels
    assert source.num_classes == (len(classes) or None)
    if remark:
        assert f"{tmp_path}: {remark}" in source.remarks


@pytest.mark.parametrize("layout", ["class", "split/class"])
def test_folders_that_may_be_classes_or_splits_are_asked_about(tmp_path, layout):
    make_files(tmp_path, [f"{c}/{year}/{i}.png" for c in "ab" for year in (2023, 2024) for i in range(2)])
    message = r"which folder is the class of the images in a/2023\? --config.source.layout=class: the first one.*"
    with pytest.raises(DataError, match=message):
        folder(tmp_path)
    source = folder(tmp_path, "a" if layout == "split/class" else "train", layout=layout)
    assert source.class_names == (("2023", "2024") if layout == "split/class" else ("a", "b"))
    assert source.num_examples == (4 if layout == "split/class" else 8)


def test_more_images_below_classes_than_in_them_are_asked_about(tmp_path):
    make_files(tmp_path, ["a/1.png", "b/2.png", "a/more/3.png", "b/more/4.png", "b/more/5.png"])
    with pytest.raises(DataError, match=r"which folder is the class of the images in [ab]/more\?"):
        folder(tmp_path)
    assert read(folder(tmp_path, layout="class")) == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 1)]


def test_a_link_around_itself_is_not_followed(tmp_path):
    make_files(tmp_path, CLASSES)
    (tmp_path / "a" / "all").symlink_to(tmp_path)
    assert folder(tmp_path).num_examples == 4


def test_a_directory_is_listed_once_for_all_splits(tmp_path, monkeypatch):
    make_files(tmp_path, ["train/a/1.png", "test/a/2.png"])
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    for path in (tmp_path, *tmp_path.rglob("*")):
        if path.is_dir():
            os.utime(path, (1e9, 1e9))
    listed.clear()
    assert folder(tmp_path).num_examples == folder(tmp_path, "test").num_examples == 1
    assert len(listed) == 5
    make_files(tmp_path, ["train/a/3.png"])
    assert folder(tmp_path).num_examples == 2
    assert len(listed) == 10  # one folder has changed, so all are listed again


# A folder that is cut


def cut(root, **options):
    """Returns the names of the files of each split."""
    names = {}
    for split in ("train", "validation", "test"):
        source = folder(root, split, **{"validation": "validation", "test": "test", **options})
        names[split] = {os.path.relpath(source.example_name(i), root) for i in range(source.num_examples)}
    return names


def test_a_folder_without_splits_is_cut_by_contents(tmp_path):
    make_files(tmp_path / "all", [f"{label}/{i}.png" for label in "ab" for i in range(120)])
    before = cut(tmp_path / "all")
    counts = [len(names) for names in before.values()]
    assert sum(counts) == 240 and 170 < counts[0] < 215 and min(counts) > 8
    new = tmp_path / "all" / "a" / "renamed.png"
    (tmp_path / "all" / "a" / "7.png").rename(new)
    new.with_name("copy.png").write_bytes(new.read_bytes())
    make_files(tmp_path / "more", [f"b/{i}.png" for i in range(230, 250)])
    for path in (tmp_path / "more" / "b").iterdir():
        path.rename(tmp_path / "all" / "b" / f"new_{path.name}")
    after = cut(tmp_path / "all")
    for split, names in before.items():
        assert names - {"a/7.png"} <= after[split]
        if "a/7.png" in names:
            assert {"a/renamed.png", "a/copy.png"} <= after[split]
    thirds = cut(tmp_path / "all", fractions=(0.3, 0.3, 0.4))
    assert all(50 < len(names) < 140 for names in thirds.values())


def test_files_of_which_nothing_can_be_read_are_cut_by_their_names(tmp_path):
    make_files(tmp_path, [f"a/{i}.png" for i in range(40)])
    for number in range(40, 80):
        (tmp_path / "a" / f"{number}.png").symlink_to(tmp_path / "gone")
        (tmp_path / "a" / f"{number}.jpg").touch()
    (tmp_path / "a" / "loop.png").symlink_to(tmp_path / "a" / "loop.png")
    splits = cut(tmp_path)
    assert sum(map(len, splits.values())) == 121 and len(splits["train"]) < 121 - 5
    assert all(1 <= len(splits[name]) < 40 for name in ("validation", "test"))


def test_who_names_no_other_split_trains_on_all(tmp_path):
    make_files(tmp_path, [f"a/{i}.png" for i in range(30)])
    assert folder(tmp_path).num_examples == folder(tmp_path, "train", test="train[90%:]").num_examples == 30
    assert folder(tmp_path, test="test").num_examples < 30
    assert folder(tmp_path, "train", validation="validation[:50%]").num_examples < 30
    with pytest.raises(DataError, match="Unknown split 'test'; its splits are train"):
        folder(tmp_path, "test")


def test_a_class_that_the_cut_leaves_out_is_told(tmp_path):
    make_files(tmp_path, [f"a/{i}.png" for i in range(100)] + ["b/100.png"])
    source = folder(tmp_path, test="test")
    missing = [remark for remark in source.remarks if "classes without images in" in remark]
    assert len(missing) == 2 and all(remark.endswith(": b") for remark in missing)
    assert source.remarks[1].startswith(f"{tmp_path} is cut: ") and source.remarks[1].endswith(" test")


def test_a_group_is_in_one_split(tmp_path):
    make_files(tmp_path, [f"{'ab'[i % 2]}/video{i // 5}_{i}.png" for i in range(200)])
    splits = cut(tmp_path, group=r"video(\d+)_")
    groups = {split: {name.split("_")[0][2:] for name in names} for split, names in splits.items()}
    assert all(groups.values()) and sum(map(len, groups.values())) == 40
    assert {name.split("_")[0][2:] for name in cut(tmp_path)["train"]} & {
        name.split("_")[0][2:] for name in cut(tmp_path)["test"]
    }  # what the groups prevent
    with pytest.raises(ConfigError, match=r"config.source.group='clip' is not found in [ab]/video\d+_\d+.png"):
        cut(tmp_path, group="clip")


def test_a_group_of_all_and_fractions_of_given_splits_are_refused(tmp_path):
    make_files(tmp_path / "one", [f"a/{i}.png" for i in range(9)])
    with pytest.raises(ConfigError, match=r"config.source.group='x\*' makes one group, '', of all files of"):
        cut(tmp_path / "one", group="x*")
    make_files(tmp_path / "two", ["train/a/1.png", "test/a/2.png"])
    with pytest.raises(ConfigError, match=r"fractions=\(0.5, 0.0, 0.5\), but .* has splits of its own: test, train"):
        folder(tmp_path / "two", test="test", fractions=(0.5, 0.0, 0.5))


def test_a_group_in_two_splits_is_refused(tmp_path):
    make_files(tmp_path, ["train/a/p1_1.png", "train/a/p2_1.png", "test/a/p2_2.png"])
    with pytest.raises(DataError, match=r"the group 'p2' of config.source.group is in the splits test and train"):
        folder(tmp_path, group=r"p\d")
    assert folder(tmp_path, group=r"p\d_\d").num_examples == 2
    make_files(tmp_path / "one", ["a/p1_1.png", "a/p1_2.png"])
    with pytest.raises(ConfigError, match=r"a slice such as 'train\[:50%\]' does not keep groups together"):
        folder(tmp_path / "one", "train[:50%]", train="train[:50%]", group=r"p\d")


# Values of more than 8 bits


def scan(root, tops, **options):
    """Opens a folder of 16-bit files with these largest values."""
    for number, top in enumerate(tops):
        path = root / "a" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.array([[0, top]], np.uint16)).save(path)
    config = SourceConfig(name="folder", path=str(root), test=None, **options)
    return open_source(config, "train", num_classes=1, image_size=4, channels=1)


@pytest.mark.parametrize(
    ("tops", "given", "bits", "words"),
    [
        ([3000, 4095], "auto", 12, "values up to 4,095 in 2 files of more than 8 bits, read as 12 bits"),
        ([200, 255], "auto", 8, "values up to 255 in 2 files of more than 8 bits, read as 8 bits"),
        ([5000, 65535], "auto", 16, "values up to 65,535 in 2 files of more than 8 bits, read as 16 bits"),
        ([300, 400], "auto", 12, "read as 12 bits; most of that range is not used (config.source.bit_depth)"),
        ([3000, 4095], "16", 16, "read as 16 bits; most of that range is not used (config.source.bit_depth)"),
        ([9000, 16383], "14", 14, None),
    ],
)
def test_the_bits_of_a_scan(tmp_path, tops, given, bits, words):
    source = scan(tmp_path, tops, bit_depth=given)
    assert source.bit_depth == bits
    assert [words is not None and words in remark for remark in source.remarks[1:]] == [True] * (words is not None)
    reader = Reader(source, channels=1, max_bad_fraction=0.0)
    brightest = sorted(int(image.pixels.max()) for image, _ in reader.decoded(np.arange(len(tops))))
    assert brightest == [int(255 * top / (2**bits - 1) + 0.5) for top in tops]
    before = folder(tmp_path).fingerprint  # as versions before 0.2.0 had it, which read 16 bits
    assert source.fingerprint == (before if bits == 16 else f"{bits} bits of {before}")

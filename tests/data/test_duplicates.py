import io

import numpy as np
import pytest
from PIL import Image

from big_distill.data import Source, array_source, duplicates

RANDOM = np.random.default_rng(0)


def photo(height=96, width=120):
    """Makes smooth colours of chance, with some grain."""
    coarse = RANDOM.integers(0, 256, (5, 6, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int64)
    return Image.fromarray(np.clip(smooth + RANDOM.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8))


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def files_source(name, files, labels=None):
    labels = [0] * len(files) if labels is None else labels
    return Source(
        name=name,
        num_examples=len(files),
        num_classes=3,
        class_names=("ant", "bee", "cat"),
        fingerprint=name,
        read=lambda ids: [(files[i], labels[i]) for i in ids],
        example_name=lambda i: f"{name}/{i}, or so.jpg",
    )


def pairs(found):
    return {(row.kind, row.split, row.number, row.other_split, row.other_number) for row in found}


@pytest.fixture(scope="module")
def photos():
    return [photo() for _ in range(40)]


@pytest.fixture(scope="module")
def train(photos):
    return [encoded(image, "JPEG", quality=92) for image in photos]


def test_copies_in_other_splits_are_found_and_nothing_else(photos, train):
    half = photos[4].resize((60, 48), Image.Resampling.BICUBIC)
    large = photos[5].resize((700, 560), Image.Resampling.LANCZOS)
    turned = Image.Exif()
    turned[0x0112] = 3
    copies = [
        train[1],
        encoded(photos[2], "JPEG", quality=40),
        encoded(photos[3]),
        encoded(half, "JPEG", quality=75),
        encoded(large, "JPEG", quality=75),
        encoded(photos[6], "WEBP", quality=60),
        encoded(photos[7].transpose(Image.Transpose.ROTATE_180), "JPEG", quality=92, exif=turned),  # shown upright
    ]
    others = [encoded(photo(), "JPEG", quality=92) for _ in range(40)]
    splits = {
        "train": files_source("train", train),
        "validation": files_source("validation", [*others[:20], *copies]),
        "test": files_source("test", [*others[20:], train[9]]),
    }
    near = {("near", "train", i, "validation", 18 + i + 1) for i in range(2, 8)}
    exact = {("exact", "train", 1, "validation", 20), ("exact", "train", 9, "test", 20)}
    found = duplicates.find(splits, num_threads=2)
    assert pairs(found) == near | exact
    words = "train and validation share 7 (6 near copies), train and test share 1 (0 near copies)"
    assert duplicates.described(found, splits) == words


def test_flat_dull_small_and_broken_images_are_like_no_other(train):
    def level(value, spread=0):
        noise = RANDOM.integers(-spread, spread + 1, (48, 48, 3)) if spread else 0
        return Image.fromarray(np.uint8(np.full((48, 48, 3), value) + noise))

    flat = [encoded(level(value)) for value in (250, 100, 0)]
    dull = [encoded(level(100, spread)) for spread in (3, 4, 5)]
    tiny = [np.uint8(photo(31, 40)), np.uint8(photo(31, 40))]
    fog = Image.fromarray(np.asarray(photo()) // 60 + 100)  # in the other split with other bytes, but the same pixels
    broken = [b"", train[0][:300], b"no image"]
    splits = {
        "train": files_source("train", [*flat, *dull, tiny[0], *broken, tiny[1], encoded(fog)]),
        "test": files_source(
            "test", [encoded(level(101)), encoded(level(1)), *broken[:2], tiny[1] ^ 1, tiny[0], encoded(fog, "BMP")]
        ),
    }
    assert pairs(duplicates.find(splits, 2)) == {
        ("exact", "train", 6, "test", 5),  # the pixels of an array
        ("exact", "train", 8, "test", 3),  # the bytes of a broken file
    }


def test_the_same_shape_in_another_colour_is_another_image():
    shirt = np.asarray(photo(64, 64).convert("L"))
    red, blue = (np.zeros((64, 64, 3), np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = shirt // 114 * 114, shirt // 114 * 114 + 100
    grey_hashes = duplicates._hashes(
        np.stack([np.asarray(Image.fromarray(x).resize((9, 8), Image.Resampling.BOX)) for x in (red, blue)])
    )
    assert np.bitwise_count(grey_hashes[0] ^ grey_hashes[1]) <= duplicates.MAX_DISTANCE  # the hash alone would match
    splits = {"train": array_source("a", red[None]), "test": array_source("b", blue[None])}
    assert duplicates.find(splits, 1) == []


def test_the_search_finds_what_comparing_all_pairs_finds():
    """The reference follows the definition: bits of neighbours, and the error of the cells relative to contrast."""
    base = RANDOM.integers(0, 256, (14, 8, 9, 3)).repeat(4, axis=0)
    cells = np.clip(base + RANDOM.integers(-40, 41, base.shape) * RANDOM.random((56, 1, 1, 1)), 0, 255)
    cells = cells.astype(np.uint8)
    labels = RANDOM.integers(0, 2, 56)
    prints = duplicates.Prints(np.arange(1, 57).astype(np.uint64), cells, np.ones(56, bool), labels)
    left, right = prints.of(np.arange(0, 56, 2)), prints.of(np.arange(1, 56, 2))
    for a, b, across_classes in ((left, right, False), (prints, prints, True)):
        expected = {}
        for i, j in np.ndindex(len(a.label), len(b.label)):
            x, y = a.cells[i].astype(float), b.cells[j].astype(float)
            grey = [np.diff(cells @ [0.299, 0.587, 0.114]) > 0 for cells in (x, y)]
            contrast = min(np.sqrt(((cells - cells.mean((0, 1))) ** 2).mean()) for cells in (x, y))
            distance = int((grey[0] != grey[1]).sum())
            close = distance <= 6 and np.sqrt(((x - y) ** 2).mean()) <= 0.2 * contrast
            if close and not (across_classes and a.label[i] == b.label[j]):
                expected[i] = min(expected.get(i, (99, 0)), (distance, j))
        found = {i: (distance, j) for _, distance, i, j in duplicates._closest(a, b, across_classes)}
        assert found == expected and len(found) > 5


def test_one_image_in_two_classes_is_named_from_both_sides(photos, train):
    again = encoded(photos[2], "JPEG", quality=50)
    files = [train[0], train[0], train[1], train[1], train[2], again, train[3], train[3], train[0]]
    labels = [0, 1, 0, 0, 2, 1, -1, 0, 0]  # images of one class, or without one, do not contradict each other
    source = files_source("train", files, labels)
    found = duplicates.find({"train": source}, 2)
    assert sorted({(row.kind, row.number, row.class_name, row.other_class_name) for row in found}) == [
        ("exact", 0, "ant", "bee"),
        ("exact", 1, "bee", "ant"),
        ("exact", 8, "ant", "bee"),
        ("near", 4, "cat", "bee"),
        ("near", 5, "bee", "cat"),
    ]
    assert duplicates.described(found, {"train": source}) == "5 in two classes"


def test_a_table_is_read_back_for_the_same_splits_alone(train):
    splits = {"train": files_source('a\udcff\n"b"', train[:3], [0, 1, 2]), "test": files_source("c", train[1:2])}
    found = duplicates.find(splits, 1)
    data = duplicates.to_csv(found, splits)
    assert len(found) == 1 and duplicates.from_csv(data, splits) == found
    for other in ({"train": splits["train"]}, {**splits, "test": files_source("d", train[1:2])}):
        assert duplicates.from_csv(data, other) is None
    for damaged in (b"", data[:-9], b"\xff\0" + data, data.replace(b"exact,0", b"exact,x")):
        assert duplicates.from_csv(damaged, splits) is None


def test_a_search_that_takes_too_long_is_given_up(train):
    splits = {"train": files_source("a", train), "test": files_source("b", train)}
    assert duplicates.find(splits, 1, seconds=1e-9) is None
    prints = duplicates._prints_of(splits["train"], np.arange(40))
    unlike = prints._replace(content=prints.content + np.uint64(1))
    with pytest.raises(duplicates._TooLong):  # also where all images are compared with all
        list(duplicates._closest(prints, unlike, across_classes=False, deadline=0.0))

import gzip

import numpy as np
import pytest

from big_distill.config import SourceConfig
from big_distill.data.sources import check_source, open_source
from big_distill.errors import ConfigError, DataError


def open_(name, split="train", num_classes=10, **options):
    config = SourceConfig(name=name, **options)
    return open_source(config, split, num_classes=num_classes, image_size=8, channels=3)


def write_idx(path, items):
    data = bytes([0, 0, 8, items.ndim]) + np.array(items.shape, ">u4").tobytes() + items.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_idx_files_of_ones_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (31, 32, 32), np.uint8)
    write_idx(tmp_path / "letters-train-images-idx3-ubyte.gz", images[:26])
    write_idx(tmp_path / "letters-train-labels-idx1-ubyte.gz", np.arange(26))
    write_idx(tmp_path / "letters-t10k-images-idx3-ubyte", images[26:])
    train, test = (open_("idx", split, num_classes=26, path=str(tmp_path)) for split in ("train", "test"))
    assert train.num_classes == 26 and train.class_names[25] == "25" and test.num_classes is None
    pixels, labels = zip(*train.read(np.arange(26)), strict=True)
    assert list(labels) == list(range(26)) and np.array_equal(np.stack(pixels), images[:26])
    assert [label for _, label in test.read(np.arange(5))] == [-1] * 5
    assert open_("idx", "train[20:]", num_classes=26, path=str(tmp_path)).num_examples == 6
    more = open_("idx", num_classes=27, path=str(tmp_path))
    with pytest.raises(DataError, match=r"has no image of 1 of its classes: 26; --config.source.allow_empty_classes"):
        check_source(more, 26, 27, None)
    both = open_("idx", "test+train[:3]", num_classes=26, path=str(tmp_path))
    assert [label for _, label in both.read(np.arange(8))] == [-1] * 5 + [0, 1, 2]
    write_idx(tmp_path / "digits-train-images-idx3-ubyte", images[:2])
    with pytest.raises(
        DataError, match=r"digits-train-images-idx3-ubyte and letters-train-.* are both the split 'train'"
    ):
        open_("idx", num_classes=26, path=str(tmp_path))
    (tmp_path / "digits-train-images-idx3-ubyte").unlink()
    write_idx(tmp_path / "letters-train-labels-idx1-ubyte.gz", np.arange(26) + 1)  # as EMNIST numbers letters
    with pytest.raises(DataError, match=r"#25 has the label 26, but there are 26 class names: expected 0 to 25"):
        open_("idx", num_classes=26, path=str(tmp_path))
    write_idx(tmp_path / "letters-train-labels-idx1-ubyte.gz", np.arange(25))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz holds 26 images, but .* labels of shape \[25\]"):
        open_("idx", num_classes=26, path=str(tmp_path))


def test_idx_files_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"config.source.path must be set: the directory of the source 'idx'"):
        open_("idx")
    with pytest.raises(DataError, match=r"holds no pairs train-images-idx3-ubyte and train-labels-idx1-ubyte"):
        open_("idx", path=str(tmp_path))
    with pytest.raises(ConfigError, match=r"config.source.label='x' is of TFDS sets, but the source is 'idx'"):
        open_("idx", path=str(tmp_path), label="x")

"""Checks that random images give pixels, or a `BadImage` that the pipeline replaces and counts, and no other error."""

import io
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import bounded, mutations
from PIL import Image

from big_distill.config import Config, SourceConfig, ViewConfig
from big_distill.data.decode import BadImage, decode
from big_distill.data.pipeline import TrainPipeline
from big_distill.data.sources import open_source
from big_distill.errors import DataError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MAX_PIXELS = 1 << 20  # in place of Pillow's 89 million: limits the time and memory of a case
RANDOM = np.random.default_rng(0)


def encoded(image, format_, **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def every_kind():
    pixels = RANDOM.integers(0, 256, (13, 17, 4), np.uint8)
    colour, alpha = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels)
    grey, wide = Image.fromarray(pixels[..., 0]), Image.fromarray(pixels[..., 0].astype(np.uint16) * 256)
    turned = Image.Exif()
    turned[0x0112] = 6
    yield from (encoded(image, "JPEG") for image in (colour, grey, colour.convert("CMYK")))
    yield encoded(colour, "JPEG", exif=turned, progressive=True)
    yield encoded(colour, "MPO", save_all=True, append_images=[colour])
    yield from (encoded(image, "PNG") for image in (colour, alpha, grey, wide, grey.convert("1"), grey.convert("LA")))
    yield encoded(colour.quantize(9), "PNG", transparency=bytes([0, 128, 255]), exif=turned)
    yield encoded(colour.quantize(9), "GIF", save_all=True, append_images=[colour.quantize(5)], transparency=1)
    yield from (encoded(alpha, "WEBP", lossless=lossless) for lossless in (True, False))
    yield encoded(alpha, "WEBP", save_all=True, append_images=[colour])
    yield from (encoded(colour, "TIFF", compression=name) for name in (None, "tiff_lzw", "tiff_deflate", "jpeg"))
    yield encoded(wide, "TIFF")
    yield from (encoded(colour, format_) for format_ in ("BMP", "PPM"))


IMAGES = tuple(every_kind())


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS)


def assert_pixels(image, channels):
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == channels
    assert 0 < image.size <= channels * MAX_PIXELS


@pytest.mark.parametrize("data", IMAGES)
def test_all_are_images(data):
    assert_pixels(decode(data, 3), 3)


@given(data=mutations(*IMAGES), channels=st.sampled_from((1, 3)))
def test_fuzzed_images(data, channels):
    with bounded(megabytes=100):
        try:
            image = decode(data, channels)
        except BadImage as error:
            assert str(error) and "\n" not in str(error)
        else:
            assert_pixels(image, channels)


@given(damaged=st.lists(mutations(*IMAGES), min_size=1, max_size=4), allowed=st.sampled_from((0.1, 0.5)))
def test_fuzzed_folders(damaged, allowed, tmp_path_factory, caplog):
    """Every unreadable image is named, counted and replaced; too many of them end the run in one line."""
    caplog.set_level(logging.ERROR)
    root = tmp_path_factory.mktemp("photos")
    for index, data in enumerate([*damaged, *IMAGES[:8]]):
        (root / f"{index:02d}.jpg").write_bytes(data)
    counts = {"num_train_examples": 8 + len(damaged), "max_bad_fraction": allowed}
    options = SourceConfig(name="folder", path=str(root), test=None, bit_depth="16", num_threads=1, **counts)
    view = ViewConfig(image_size=4, mixup=0.0)
    config = Config(num_classes=2, batch_size=8 + len(damaged), total_steps=1, view=view, source=options)
    unreadable = {f"{root}/{index:02d}.jpg" for index, data in enumerate(damaged) if is_bad(data)}
    with bounded(megabytes=200):
        source = open_source(options, "train", num_classes=2, image_size=4, channels=3)
        data = TrainPipeline(config, source)
        if len(unreadable) > max(allowed * source.num_examples, 1 if allowed else 0):
            with pytest.raises(DataError, match=r"images of .* cannot be read, more than config.source.max_bad"):
                list(data.chunks(0))
        else:
            (chunk,) = data.chunks(0)
            assert chunk["pixels"].shape == (1, config.batch_size, 4, 4, 3) and set(data.bad) == unreadable


def is_bad(data):
    try:
        decode(data, 3)
    except BadImage:
        return True
    return False

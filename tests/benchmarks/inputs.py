"""Measures input in images a second: JPEGs read from files batch by batch, and small images from memory."""

from __future__ import annotations

import io
import os
import pathlib
import tempfile
from collections.abc import Iterator
from unittest import mock

import measure
import numpy as np
from PIL import Image

from big_distill.config import Config, SourceConfig, ViewConfig
from big_distill.data import array_source, jpeg
from big_distill.data.pipeline import TrainPipeline
from big_distill.data.sources import open_source

JPEG_BYTES = 59_000  # size of a Flowers-102 image of 500 x 600 px


def rows(effort: measure.Effort) -> Iterator[measure.Row]:
    count, size = (6, (100, 120)) if effort.tiny else (500, (500, 600))
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        write_jpegs(folder, count, size)
        view = 16 if effort.tiny else 128
        ways = {"whole, then cut": without_the_extra(jpegs(folder, count, view, False, effort.tiny))}
        if jpeg.part_decoder():
            ways["parts (extra jpeg)"] = jpegs(folder, count, view, False, effort.tiny)
        ways["reduced_decoding"] = jpegs(folder, count, view, True, effort.tiny)
        if not effort.tiny and (reference := tf_data(folder, view)):
            ways = {"tf.data decode_and_crop": reference, **ways}
        yield from measure.in_turns("input", f"JPEG {size[0]} x {size[1]} -> {view} px", ways, effort)
        yield from measure.in_turns(
            "input", "uint8 64 px -> 64 px, in memory", {"inception crops": raw(effort)}, effort
        )


def write_jpegs(folder: pathlib.Path, count: int, size: tuple[int, int]) -> None:
    """Writes blurred noise at three scales, compressed to the size of photographs: 1.6 bits a pixel."""
    random = np.random.default_rng(0)
    (folder / "all").mkdir()
    for i in range(count):
        height, width = size if i % 2 else size[::-1]
        image = np.full((height, width, 3), 127.0)
        for scale, amplitude, channels in ((60, 50, 3), (4, 20, 1), (2, 16, 1)):
            noise = random.normal(size=(height // scale + 1, width // scale + 1, channels)).astype(np.float32)
            layers = [Image.fromarray(noise[..., c]).resize((width, height), Image.BICUBIC) for c in range(channels)]
            image += amplitude * np.stack(layers, -1)
        picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
        low, high = 10, 96
        while high - low > 1:  # finds the best quality that is no larger
            quality = (low + high) // 2
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=quality)
            low, high = (quality, high) if file.tell() <= JPEG_BYTES * height * width / 300_000 else (low, quality)
        picture.save(folder / "all" / f"{i}.jpg", quality=low)


def jpegs(folder: pathlib.Path, count: int, view: int, reduced: bool, tiny: bool) -> measure.Way:
    """Makes training batches of inception crops and flips; nothing is kept in memory."""
    options = SourceConfig("folder", path=str(folder), num_train_examples=count, cache_bytes=0)
    source = open_source(options, "train", num_classes=1, image_size=view, channels=3)
    views = ViewConfig(image_size=view, mixup=1.0, reduced_decoding=reduced)
    config = Config(num_classes=1, batch_size=64, total_steps=2 if tiny else 30, view=views, source=options)
    return batches_of(TrainPipeline(config, source), 64)


def without_the_extra(way: measure.Way) -> measure.Way:
    def run() -> int:
        with mock.patch.object(jpeg, "part_decoder", lambda: None):
            return way()

    return run


def raw(effort: measure.Effort) -> measure.Way:
    """Makes the same batches from arrays of 64 px."""
    count = 64 if effort.tiny else 10_000
    images = np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)
    options = SourceConfig("arrays", num_train_examples=count)
    config = Config(
        num_classes=1,
        batch_size=512,
        total_steps=2 if effort.tiny else 40,
        view=ViewConfig(image_size=64, mixup=1.0),
        source=options,
    )
    source = array_source("arrays", images, np.zeros(count, np.int64), ["all"])
    return batches_of(TrainPipeline(config, source), 512)


def batches_of(pipeline: TrainPipeline, batch_size: int) -> measure.Way:
    return lambda: batch_size * sum(1 for _ in pipeline.chunks(0))


def tf_data(folder: pathlib.Path, view: int) -> measure.Way | None:
    """Does the same work in TensorFlow, if it is installed: the reference for the other figures."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError:
        return None

    def read(path: tf.Tensor) -> tf.Tensor:
        data = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data),
            tf.zeros([0, 0, 4]),
            area_range=(0.05, 1),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        crop = tf.image.decode_and_crop_jpeg(data, tf.concat([begin[:2], size[:2]], 0), channels=3)
        return tf.cast(tf.image.resize(tf.image.random_flip_left_right(crop), (view, view)) + 0.5, tf.uint8)

    files = tf.data.Dataset.from_tensor_slices(sorted(map(str, folder.glob("*/*")))).repeat()
    threads = SourceConfig().num_threads
    batches = files.map(read, num_parallel_calls=threads).batch(64).take(30).prefetch(2)
    return lambda: 64 * sum(1 for _ in batches)

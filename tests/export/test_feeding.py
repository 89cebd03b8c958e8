"""Checks that programs without this library, which follow a file's `.json`, make the pixels that evaluation sees."""

import json
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
from networks import make_example
from PIL import Image, ImageOps
from readmes import ROOT, blocks

from big_distill import weights
from big_distill.config import FITS, ModelConfig
from big_distill.data.decode import decode
from big_distill.data.resample import Ragged, central_view
from big_distill.export import formats, predictor
from big_distill.state import Card

PAGE = ROOT / "big_distill" / "export" / "README.md"
SIZES = ((48, 64), (64, 37), (20, 23), (9, 90), (32, 32))  # height, width
CASES = [("crop", 3, 40, 32), ("crop", 1, 17, 17), ("squash", 3, 32, 32), ("pad", 3, 32, 32), ("pad", 1, 33, 20)]


def recipe(language, first):
    (block,) = (block for block in blocks(language) if block.page == PAGE and block.text.startswith(first))
    return block.text


@pytest.fixture(params=CASES, ids=str)
def case(request, tmp_path):
    """Makes image files of noise with the views that evaluation has of them, and a packed file's `.json`."""
    fit, channels, resize, size = request.param
    architecture = weights.ConfigArchitecture(
        ModelConfig("mlp", features=(4,)), 2, channels, resize, Card(size), size, fit
    )
    (tmp_path / "student.onnx").write_bytes(b"a file")
    formats.write_card(tmp_path / "student.onnx", architecture)
    assert formats.read_card(tmp_path / "student.onnx") == architecture
    rng, files = np.random.default_rng(0), []
    for index, shape in enumerate(SIZES):
        files.append(tmp_path / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(files[-1])
    images = Ragged.pack([decode(file.read_bytes(), channels) for file in files])
    views = central_view(images, np.arange(len(files)), resize, size, fit)
    return files, tmp_path / "student.onnx.json", views


def cv2_by_definition():
    """Stands in for OpenCV where it is not installed: the functions that the recipe calls, by their definitions."""

    def resize(image, size, interpolation):
        for axis, length in enumerate(size[::-1]):
            at = (np.arange(length) + 0.5) * image.shape[axis] / length - 0.5
            low, weight = (
                np.floor(at).astype(int),
                (at % 1).reshape([-1 if i == axis else 1 for i in range(image.ndim)]),
            )
            near, far = (np.take(image, np.clip(low + i, 0, image.shape[axis] - 1), axis).astype(float) for i in (0, 1))
            image = near + (far - near) * weight
        return np.uint8(np.floor(image + 0.5))

    def border(image, above, below, before, behind, kind, value):
        widths = [(above, below), (before, behind), (0, 0)][: image.ndim]
        return np.pad(image, widths, constant_values=value[0])

    def imread(file, kind):
        image = Image.open(file)
        deep = image.mode == "I;16"
        return (
            np.repeat(np.asarray(image)[..., None], 3, axis=2) if deep else np.asarray(image.convert("RGB"))[..., ::-1]
        )

    return types.SimpleNamespace(
        IMREAD_COLOR=1, IMREAD_ANYDEPTH=2, COLOR_BGR2GRAY="L", COLOR_BGR2RGB="RGB", INTER_LINEAR=1, BORDER_CONSTANT=0,
        imread=imread,
        cvtColor=lambda image, mode: np.asarray(Image.fromarray(image[..., ::-1]).convert(mode)),
        resize=resize,
        copyMakeBorder=border,
    )  # fmt: skip


@pytest.mark.parametrize("library", ["Pillow", "OpenCV", "OpenCV by its definition"])
def test_a_recipe_in_python_gives_the_views_of_evaluation(library, case, monkeypatch):
    if library == "OpenCV":
        pytest.importorskip("cv2")
    elif library == "OpenCV by its definition":
        monkeypatch.setitem(sys.modules, "cv2", cv2_by_definition())
    files, card, views = case
    code = {}
    exec(recipe("python", f"# {library.split()[0]}."), code)
    for file, view in zip(files, views, strict=True):
        got = code["pixels"](file, card)
        assert got.dtype == np.uint8 and got.shape == (1, *view.shape)
        assert np.abs(got[0].astype(int) - view).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("library", ["Pillow", "OpenCV by its definition"])
def test_a_recipe_reads_a_scan_by_the_bits_that_the_network_knows(library, channels, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cv2", cv2_by_definition())
    architecture = weights.ConfigArchitecture(
        ModelConfig("mlp", features=(4,)), 2, channels, 8, Card(8), 8, bit_depth=12
    )
    (tmp_path / "student.onnx").write_bytes(b"a file")
    formats.write_card(tmp_path / "student.onnx", architecture)
    scan = tmp_path / "scan.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 4096, (20, 30), np.uint16)).save(scan)
    images = Ragged.pack([decode(scan.read_bytes(), channels, 12)])
    code = {}
    exec(recipe("python", f"# {library.split()[0]}."), code)
    got = code["pixels"](scan, tmp_path / "student.onnx.json")
    assert np.abs(got.astype(int) - central_view(images, np.arange(1), 8, 8, "crop")).max() <= 1


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_the_recipe_for_the_browser_gives_the_views_of_evaluation(case, tmp_path):
    files, card, views = case
    (tmp_path / "run.js").write_text(
        recipe("js", "// Browser.")
        + """
        const [, , card, ...sizes] = process.argv, fs = require("fs");
        const { input } = JSON.parse(fs.readFileSync(card));
        sizes.forEach((size, i) => {
          const [height, width] = size.split("x").map(Number);
          const data = new Uint8ClampedArray(fs.readFileSync(`${i}.rgba`));
          fs.writeFileSync(`${i}.raw`, square({ data, width, height }, input));
        });"""
    )
    for index, file in enumerate(files):
        (tmp_path / f"{index}.rgba").write_bytes(np.asarray(Image.open(file).convert("RGBA")).tobytes())
    sizes = [f"{height}x{width}" for height, width in SIZES]
    subprocess.run(["node", "run.js", str(card), *sizes], cwd=tmp_path, check=True, timeout=60)
    for index, view in enumerate(views):
        got = np.frombuffer((tmp_path / f"{index}.raw").read_bytes(), np.uint8).reshape(view.shape)
        assert np.abs(got.astype(int) - view).max() <= 1


def test_an_antialiased_resize_shows_a_network_other_textures(tmp_path):
    """The recipe keeps the answers on gratings finer than the pixels of the view. The resize of Pillow does not."""
    network, size = make_example("bit_zero").network, 17
    (tmp_path / "student.onnx").write_bytes(b"a file")
    formats.write_card(tmp_path / "student.onnx", network.architecture)
    rng, files = np.random.default_rng(0), [tmp_path / f"{index}.png" for index in range(40)]
    for file in files:
        y, x = np.mgrid[: rng.integers(80, 100), : rng.integers(80, 100)]
        angle, period = rng.uniform(0, np.pi), rng.uniform(2.2, 6)
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)
        Image.fromarray(np.uint8(128 + 80 * wave)).convert("RGB").save(file)
    images = [np.asarray(Image.open(file)) for file in files]
    classify, code = predictor.of_network(network).classify, {}
    exec(recipe("python", "# Pillow."), code)
    want = classify(central_view(Ragged.pack(images), np.arange(40), size, size))
    fed = classify(np.concatenate([code["pixels"](file, tmp_path / "student.onnx.json") for file in files]))
    smooth = classify(np.stack([np.asarray(ImageOps.fit(Image.fromarray(image), (size, size))) for image in images]))
    scale = want.std(0).mean()  # how much the logits differ between images
    assert (fed.argmax(1) == want.argmax(1)).all() and np.abs(fed - want).mean() < 0.01 * scale
    assert np.abs(smooth - want).mean() > 0.5 * scale


def test_the_json_names_the_resize(case):
    _, card, views = case
    spec = json.loads(card.read_text())["input"]
    assert spec["fit"] in FITS and [spec["size"], spec["channels"]] == [*views.shape[2:]]
    assert (spec["resize"]["filter"], spec["resize"]["antialias"], spec["resize"]["coordinates"]) == (
        "bilinear", False, "half_pixel"
    )  # fmt: skip
    assert spec["order"] == ["decode", "resize", "centre"] and spec["layout"] == "NHWC" and spec["dtype"] == "uint8"

"""Checks that LiteRT files compute what the network does: in floats the same, in integers nearly."""

import collections
import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import cases

from big_distill.errors import ConfigError, DataError, RunError
from big_distill.export import litert
from big_distill.export.function import pixels_to_logits

pytestmark = [
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("tensorflow", "ai_edge_litert"))), reason="the extra tf is not installed"
    ),
    pytest.mark.xdist_group("litert"),  # one process imports TensorFlow, which takes seconds
]


def test_logits_are_the_networks(example, tmp_path):
    litert.write(tmp_path / "net.tflite", example.network)
    assert [path.name for path in tmp_path.iterdir()] == ["net.tflite"]
    classify = litert.read(tmp_path / "net.tflite")
    for count in (5, 1):
        example.check(classify, count)


def interpreter(path):
    """Returns an interpreter, and the count of each operation in it."""
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_content=path.read_bytes())
    return made, collections.Counter(op["op_name"] for op in made._get_ops_details())


@pytest.mark.full
def test_a_mobile_network_is_fused_convolutions(make, tmp_path):
    litert.write(tmp_path / "net", make("lite").network)
    _, operations = interpreter(tmp_path / "net")
    assert operations == {
        **{"CAST": 1, "MUL": 2, "SUB": 1, "CONV_2D": 2 + 6 + 7, "DEPTHWISE_CONV_2D": 7},
        **{"SUM": 1, "FULLY_CONNECTED": 1},
    }


@pytest.mark.parametrize("family", cases("cnn", full=["mlp_smaller_than_its_view", "bit", "lite", "vit"]))
def test_integers_agree(make, tmp_path, family):
    """The images gave no ranges. A class's bias, the same for all images, does not count."""
    network = make(family).network
    seen, unseen = images_like(make(family).pixels, 56).reshape(2, 28, *make(family).pixels.shape[1:])
    litert.write_int8(tmp_path / "net", network, seen)
    got, want = litert.read(tmp_path / "net")(unseen), np.asarray(pixels_to_logits(network)(unseen))
    assert got.dtype == np.float32 and (got.argmax(-1) == want.argmax(-1)).mean() > 0.85
    assert np.corrcoef((got - got.mean(0)).flat, (want - want.mean(0)).flat)[0, 1] > 0.85
    made, operations = interpreter(tmp_path / "net")
    assert "DEQUANTIZE" not in operations and not [t for t in made.get_tensor_details() if t["dtype"] == np.float32]
    (pixels,), (logits,) = made.get_input_details(), made.get_output_details()
    assert pixels["dtype"] == np.uint8 and pixels["quantization"] == (1, 0), "as a camera has them"
    assert logits["dtype"] == np.int8


def images_like(pixels, count):
    rng = np.random.default_rng(5)
    brightness = rng.integers(5, 256, (count, 1, 1, pixels.shape[-1]))
    return rng.integers(0, brightness, (count, *pixels.shape[1:]), np.uint8)


@pytest.mark.full
def test_a_product_does_not_spoil_the_range_of_its_factors(make, tmp_path, monkeypatch):
    """TensorFlow's own calibration gives the gate the range of its product, and rounds it to 0."""
    weights = np.random.default_rng(0).normal(0, 0.1, (64, 64)).astype("f")

    def gated(pixels):
        x = pixels.reshape(1, 64) * 4.0
        return x * jax.nn.hard_sigmoid(x @ weights / 100)

    monkeypatch.setattr(litert, "pixels_to_logits", lambda network: gated)
    pixels = images_like(make("cnn").pixels, 20)
    litert.write_int8(tmp_path / "net", make("cnn").network, pixels)
    want = np.concatenate([gated(image[None].astype("f")) for image in pixels])
    np.testing.assert_allclose(litert.read(tmp_path / "net")(pixels), want, atol=0.02 * want.max())


@pytest.mark.full
def test_what_the_converter_cannot_write(make, tmp_path, monkeypatch):
    monkeypatch.setattr(
        litert, "pixels_to_logits", lambda network: lambda pixels: jnp.sort(pixels.reshape(1, -1) * 1.0)
    )
    with pytest.raises(RunError, match=r"^this network cannot be written for LiteRT: [^\n]+$"):
        litert.write(tmp_path / "net", make("cnn").network)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pixels", [np.zeros((2, 8, 8, 1), "f"), np.zeros((2, 8, 8, 3), "u1")])
def test_other_pixels_are_refused(make, tmp_path, pixels):
    example = make("cnn")
    litert.write(tmp_path / "net", example.network)
    for call in (litert.read(tmp_path / "net"), lambda x: litert.write_int8(tmp_path / "int8", example.network, x)):
        with pytest.raises(DataError, match=rf"^pixels are {pixels.dtype} .*: expected uint8 \[B, 8, 8, 1\]$"):
            call(pixels)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_damaged_file(make, tmp_path, kept):
    path = tmp_path / "net"
    litert.write(path, make("cnn").network)
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 else int(kept * len(data))])
    with pytest.raises(RunError, match=r"net is not a LiteRT file that runs here: [^\n]*$"):
        litert.read(path)


def test_nothing_is_said_on_the_way(make, tmp_path, capfd):
    litert.write_int8(tmp_path / "net", make("cnn").network, make("cnn").pixels)
    litert.read(tmp_path / "net")
    assert capfd.readouterr() == ("", "")


def test_without_the_extra(make, tmp_path, monkeypatch):
    for package in ("tensorflow", "ai_edge_litert.interpreter"):
        monkeypatch.setitem(sys.modules, package, None)
    network, pixels = make("cnn").network, make("cnn").pixels
    for call in (
        lambda: litert.write(tmp_path / "net", network),
        lambda: litert.write_int8(tmp_path / "net", network, pixels),
        lambda: litert.read(tmp_path / "net"),
    ):
        with pytest.raises(ConfigError, match=r"pip install 'big_distill\[tf\]'"):
            call()

"""Checks that ONNX files compute what the network does, with graphs as one would write them by hand."""

import collections
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_distill.errors import ConfigError, DataError, RunError
from big_distill.export import onnx_graph

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_logits_are_the_networks(example, tmp_path):
    onnx_graph.write(tmp_path / "net.onnx", example.network)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    classify = onnx_graph.read(tmp_path / "net.onnx")
    for count in (5, 1, 3):
        example.check(classify, count)


def operations(path):
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def test_a_mobile_network_is_convolutions_and_little_else(make, tmp_path):
    onnx_graph.write(tmp_path / "net.onnx", make("lite").network)
    count = operations(tmp_path / "net.onnx")
    assert count["Conv"] == 2 + 2 + 3 * 6 and count["Relu"] == count["Clip"] == count["Conv"] - 7
    assert count["Transpose"] == 1 and set(count) == {
        *("Cast", "Div", "Sub", "Transpose", "Conv", "Add", "Relu", "Clip", "ReduceSum", "MatMul", "Identity")
    }


def test_images_keep_their_layout_through_group_norm(make, tmp_path):
    onnx_graph.write(tmp_path / "net.onnx", make("bit").network)
    proto = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "net.onnx"))
    shapes = {info.name: [d.dim_value for d in info.type.tensor_type.shape.dim] for info in proto.graph.value_info}
    transposed = [shapes[node.output[0]] for node in proto.graph.node if node.op_type == "Transpose"]
    assert [shape for shape in transposed if shape[2:] != [1, 1]] == [[0, 3, 32, 32]], "the image, then only its means"


def test_max_pools_are_max_pools(make, tmp_path):
    onnx_graph.write(tmp_path / "net.onnx", make("lenet5").network)
    count = operations(tmp_path / "net.onnx")
    assert count["MaxPool"] == count["Conv"] == 2


def test_what_nobody_reads_is_not_written(make, tmp_path):
    """A ViT normalises its patch tokens only for its map."""
    onnx_graph.write(tmp_path / "net.onnx", make("vit").network)
    graph = onnx.load(tmp_path / "net.onnx").graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    assert all(read.issuperset(node.output) for node in graph.node)


def test_names_and_card(make, tmp_path):
    onnx_graph.write(tmp_path / "net.onnx", make("mlp_smaller_than_its_view").network)
    model = onnx.load(tmp_path / "net.onnx")
    (pixels,), (logits,) = model.graph.input, model.graph.output
    dims = [d.dim_param or d.dim_value for d in pixels.type.tensor_type.shape.dim]
    assert (pixels.name, pixels.type.tensor_type.elem_type) == ("pixels", onnx.TensorProto.UINT8)
    assert dims == ["batch", 9, 9, 3] and logits.name == "logits"
    (card,) = model.metadata_props
    assert card.key == "card" and json.loads(card.value) == {"image_size": 9, "class_names": list("abcdefg")}


FUNCTIONS = {  # functions of float32 [B, 4, 6, 3] in [-1, 1]
    "hidden_tanh": lambda x: jnp.tanh(x),
    "gelu": lambda x: jax.nn.gelu(x),
    "exact_gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "swish": lambda x: jax.nn.silu(x),
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "softmax": lambda x: jax.nn.softmax(x),
    "fake_quantised": lambda x: jnp.clip(jnp.round(x / 0.1), -7, 7) * 0.1,
    "its_own_scale": lambda x: jnp.round(x / jnp.abs(x).max((1, 2, 3), keepdims=True) * 127) / 127,
    "two_maxima": lambda x: jnp.maximum(x, x[..., :1]) + jnp.maximum(0, x) + jnp.maximum(x, 0.1),
    "minimum": lambda x: jnp.minimum(0.3, x) + jnp.minimum(x[:, :1], x),
    "transposed_image": lambda x: x.transpose(0, 3, 2, 1)[:, 1:, ::2] - x.mean((1, 3)).reshape(-1, 1, 6, 1)[:, :, ::2],
    "sum_of_transposed": lambda x: x.transpose(0, 3, 2, 1).sum(2) - x.transpose(0, 2, 1, 3).max(1).swapaxes(1, 2),
    "attention": lambda x: jnp.einsum("bijc,bkjc->bjik", x, x),
    "inner_product": lambda x: jnp.einsum("bijc,cij->b", x, np.arange(72.0, dtype="f").reshape(3, 4, 6)),
    "matrix_from_the_left": lambda x: jnp.einsum("ki,bijc->bkjc", np.arange(8.0, dtype="f").reshape(2, 4), x),
    "padded": lambda x: jnp.pad(x.swapaxes(1, 3), ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=3),
    "constants_beside_it": lambda x: jnp.concatenate([jnp.zeros((len(x), 4, 1, 3)), x, jnp.full_like(x, 2)], 2),
    "tiled": lambda x: jnp.repeat(x[:, :, :2], 3, axis=1),
    "nhwc_to_itself": lambda x: jax.lax.conv_general_dilated(
        x, jnp.ones((3, 2, 1, 6)), (1, 2), ((2, 0), (1, 1)), rhs_dilation=(2, 1), feature_group_count=3,
        dimension_numbers=("NHWC", "HWIO", "NWHC"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions(function, tmp_path):
    def of_pixels(pixels):
        return function(pixels.astype(jnp.float32) / 128 - 1)

    path = tmp_path / "function.onnx"
    path.write_bytes(onnx_graph.model(of_pixels, (4, 6, 3), {}).SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    np.testing.assert_allclose(onnx_graph.read(path)(pixels), of_pixels(pixels), rtol=1e-5, atol=1e-5)


UNSUPPORTED = {
    "cumsum": lambda x: jnp.cumsum(x, 1),
    "round away from zero": lambda x: jax.lax.round(x),
    "slice across images": lambda x: x[:-1],
    "reduce_sum across images": lambda x: x - x.mean(0),
    "concatenate across images": lambda x: jnp.concatenate([x, jnp.zeros((1, 4, 6, 3))]),
    "dot_general across images": lambda x: jnp.einsum("bijk,cijk->bc", x, x),
    "pad between elements": lambda x: jax.lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))),
    "reduce_window_max over": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 1, 1, 2), (1,) * 4, "VALID"
    ),
}


@pytest.mark.parametrize(("name", "function"), UNSUPPORTED.items(), ids=UNSUPPORTED)
def test_what_is_not_supported_is_named(name, function):
    with pytest.raises(RunError, match=rf"^this network cannot be written as ONNX: JAX's {name}.* has no translation"):
        onnx_graph.model(lambda pixels: function(pixels.astype(jnp.float32)), (4, 6, 3), {})


@pytest.mark.parametrize("pixels", [np.zeros((2, 8, 8, 1), "f"), np.zeros((2, 8, 8, 3), "u1")])
def test_other_pixels_are_refused(make, tmp_path, pixels):
    onnx_graph.write(tmp_path / "net", make("cnn").network)
    with pytest.raises(DataError, match=rf"^pixels are {pixels.dtype} .*: expected uint8 \[B, 8, 8, 1\]$"):
        onnx_graph.read(tmp_path / "net")(pixels)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_damaged_file(make, tmp_path, kept):
    path = tmp_path / "net"
    onnx_graph.write(path, make("cnn").network)
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 else int(kept * len(data))])
    with pytest.raises(RunError, match=r"net is not an ONNX file that runs here: [^\n]*$"):
        onnx_graph.read(path)


def test_without_the_extra(make, tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    for call in (lambda: onnx_graph.write(tmp_path / "net", make("cnn").network), lambda: onnx_graph.read(tmp_path)):
        with pytest.raises(ConfigError, match=r"pip install 'big_distill\[onnx\]'"):
            call()


def test_a_network_that_cannot_be_written_leaves_no_file(make, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "pixels_to_logits", lambda network: lambda pixels: jnp.cumsum(pixels * 1.0, 1))
    with pytest.raises(RunError, match="cumsum"):
        onnx_graph.write(tmp_path / "net", make("cnn").network)
    assert not list(tmp_path.iterdir())

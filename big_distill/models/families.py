"""The families of models: which fields of a `ModelConfig` each reads, and what it must be."""

from __future__ import annotations

import dataclasses
import re

from big_distill.config import ModelConfig
from big_distill.config.checks import at_least, choice, require
from big_distill.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    fields: of `ModelConfig`, those it reads.
    min_image_size: in pixels.
    num_stages: 0: any.
    int8: whether it has convolutions that a teacher may compute in integers.
    """

    fields: tuple[str, ...]
    min_image_size: int
    num_stages: int = 0
    int8: bool = False


MODELS = {
    "mlp": Family(("features",), 1),
    "lenet5": Family(("features",), 16),
    "cnn": Family(("features",), 4),
    "six_layer_cnn": Family(("features",), 4),
    "bit": Family(
        ("features", "depth", "blocks", "width", "root_pool"), 4, int8=True
    ),  # doubled by every stage after the first
    "efficientnet_lite0": Family(("features", "blocks", "width", "padding"), 32, 7, int8=True),
    "efficientnet_lite1": Family(("features", "blocks", "width", "padding"), 32, 7, int8=True),
    "efficientnet_lite2": Family(("features", "blocks", "width", "padding"), 32, 7, int8=True),
    "mobilenet_v3_large": Family(("features", "blocks", "width", "norm", "padding"), 32, 6, int8=True),
    "vit_small": Family(("features", "patch_size"), 1),  # a multiple of the patch
    "vit_base": Family(("features", "patch_size"), 1),
}
_MAX_UNITS, _MAX_FEATURES, _MAX_WIDTH = 1000, 1 << 20, 1000.0  # what is still built in a moment
_FORMS = ("ranks", "activation_bits")  # of layers, in every family
BIT_BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def check_model(model: ModelConfig, image_size: int, path: str) -> None:
    """Raises ConfigError unless `path`, as the config calls it, is a network for images of `image_size` px."""
    choice(f"{path}.name", model.name, MODELS, or_own=True)
    for rule in model.ranks:
        require(
            bool(re.fullmatch(r"[^=]+=\d{1,9}(x\d{1,9})?", rule)),
            f"{path}.ranks: {rule!r}: expected LAYER=RANK or =INxOUT",
        )
    layers = [rule.partition("=")[0] for rule in model.ranks]
    require(len(set(layers)) == len(layers), f"{path}.ranks={model.ranks}: a layer is there twice")
    bits = model.activation_bits
    require(bits == 0 or 2 <= bits <= 8, f"{path}.activation_bits={bits}: expected 0, or 2 to 8 bits")
    family = MODELS.get(str(model.name))
    if family is None:
        return
    for field in dataclasses.fields(ModelConfig):
        value = getattr(model, field.name)
        if field.name not in ("name", *_FORMS, *family.fields) and value != field.default:
            reads = ", ".join(family.fields) or "no field"
            raise ConfigError(
                f"{path}.{field.name}={value!r}: the model {model.name!r} does not read it (it reads {reads}); "
                f"set it to {field.default!r}"
            )
    require(min((*model.features, *model.blocks, 1)) == 1, f"{path}: features and blocks must be positive")
    require(
        model.name != "cnn" or len(model.features) == 2, f"{path}.features={model.features}: a cnn has two, as (16,32)"
    )
    require(
        max((*model.features, 0)) <= _MAX_FEATURES and max(sum(model.blocks), len(model.features)) <= _MAX_UNITS,
        f"{path}.features={model.features}, blocks={model.blocks}: expected at most {_MAX_UNITS} units of at most "
        f"{_MAX_FEATURES} features",
    )
    require(0 < model.width <= _MAX_WIDTH, f"{path}.width={model.width}: expected a number above 0, up to {_MAX_WIDTH}")
    require(
        not family.num_stages or len(model.blocks) in (0, family.num_stages),
        f"{path}.blocks={model.blocks}: {model.name} has {family.num_stages} stages",
    )
    least = family.min_image_size
    if model.name == "bit":
        require(bool(model.depth) != bool(model.blocks), f"{path}: set one of depth and blocks")
        if model.depth:
            depths = ", ".join(map(str, BIT_BLOCKS))
            require(model.depth in BIT_BLOCKS, f"{path}.depth={model.depth}: expected one of {depths}, or blocks")
        choice(f"{path}.root_pool", model.root_pool, ("zero", "-inf"))
        least *= 2 ** (len(model.blocks or BIT_BLOCKS[model.depth]) - 1)
    choice(f"{path}.norm", model.norm, ("batch", "group"))
    choice(f"{path}.padding", model.padding, ("same", "symmetric"))
    if "patch_size" in family.fields:
        at_least(f"{path}.patch_size", model.patch_size, 1)
        require(
            image_size % model.patch_size == 0,
            f"{path}.patch_size={model.patch_size} does not divide an image of {image_size} px",
        )
    require(
        image_size >= least,
        f"{path}: an image of {image_size} px is smaller than the {least} px that a {model.name!r} needs",
    )

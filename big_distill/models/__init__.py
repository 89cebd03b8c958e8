"""Builds networks, each as a `Model` of two pure functions. No other folder imports `flax.linen`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from big_distill.config import ModelConfig, user_code
from big_distill.config.checks import check_fields, require
from big_distill.errors import ConfigError, nearest
from big_distill.models import bit, cnn, efficientnet_lite, mobilenet_v3, vit
from big_distill.models.family import Family
from big_distill.models.folding import cast
from big_distill.models.int8 import input_ranges, quantize
from big_distill.models.variants import (
    FACTORS,
    INPUT_RANGE,
    format_ranks,
    kernel_applications,
    parse_ranks,
    range_of,
    with_variants,
)
from big_distill.state import Model, Outputs

__all__ = [
    "FACTORS",
    "FAMILIES",
    "INPUT_RANGE",
    "build",
    "cast",
    "check_model",
    "family_of",
    "features_of",
    "fold",
    "format_ranks",
    "from_linen",
    "input_ranges",
    "kernel_applications",
    "parse_ranks",
    "quantize",
    "range_of",
]

FAMILIES = cnn.FAMILIES | bit.FAMILIES | efficientnet_lite.FAMILIES | mobilenet_v3.FAMILIES | vit.FAMILIES
_OF_ALL_FAMILIES = ("name", "ranks", "activation_bits", "options")
_MAX_UNITS, _MAX_FEATURES = 1000, 1 << 20  # a network of this size is built quickly


@functools.cache
def build(model: ModelConfig, num_classes: int, dtype: str, folded: bool = False) -> Model:
    """Makes the network that a config describes.

    The same arguments give the same object. So a step that has the Model as a static argument is compiled once.

    Args:
      model: a config that `resolve` checked. A name with a colon is the user's own `module:function`, which is called
        with `(model, num_classes, dtype)`.
      num_classes: K, the number of logits; 0: a network without a head.
      dtype: dtype of the activations, 'float32' or 'bfloat16'; parameters and logits are float32.
      folded: True for the network of `fold`'s variables and of `quantize`'s, for inference only; it is the same one if
        there is nothing to fold.

    Returns:
      The Model; its image is float32 [B, H, W, C], already normalised.

    Raises:
      ConfigError: the user's own function cannot be imported, or does not return a Model.
    """
    features, published = features_of(model), family_of(model).widths(model)
    if published and len(features) != len(published):
        raise ConfigError(f"features={features}: this {model.name} has {len(published)} widths: {published}")
    network = family_of(model).build(dataclasses.replace(model, features=features), num_classes, dtype, folded)
    return with_variants(network if isinstance(network, Model) else from_linen(network), model)


def family_of(model: ModelConfig) -> Family:
    """Returns the family of a network; `_USERS_OWN` for a user's `module:function`."""
    return FAMILIES.get(str(model.name), _USERS_OWN)


def _build_users_own(model: ModelConfig, num_classes: int, dtype: str, folded: bool) -> Model:
    network = user_code.load(str(model.name), "model.name")(model, num_classes, dtype)
    if not isinstance(network, Model):
        raise ConfigError(f"model.name={model.name!r}: expected a Model, got {type(network).__name__}")
    return _adapted(network)


_USERS_OWN = Family(
    fields=tuple(field.name for field in dataclasses.fields(ModelConfig)),
    min_image_size=lambda model: 1,
    build=_build_users_own,
    fold=lambda model, variables: dict(variables),
    int8=True,  # assumed
)


def features_of(model: ModelConfig) -> tuple[int, ...]:
    """Returns the widths of all layers that no skip connection ties, in order: `model.features`, or those published."""
    return model.features or family_of(model).widths(model)


def fold(model: ModelConfig, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Computes the variables of the folded network, `build(..., folded=True)`, from those of the plain one.

    They are float32, on the host. Kernels are standardised where the network would do so in every step. Every BatchNorm
    goes into the convolution before it, in float64. GroupNorm and LayerNorm depend on the input and stay. The user's
    own networks stay as they are.
    """
    return cast(family_of(model).fold(model, variables), "float32")


def check_model(model: ModelConfig, image_size: int, path: str) -> None:
    """Raises ConfigError unless `model`, which the config calls `path`, is a network for images of `image_size` px."""
    if model.name is None:
        raise ConfigError(f"{path}.name=None is not known{nearest('None', list(FAMILIES))}")
    check_fields(model, path)
    layers = [rule.partition("=")[0] for rule in model.ranks]
    require(len(set(layers)) == len(layers), f"{path}.ranks={model.ranks}: a layer is named twice")
    family = family_of(model)
    if family is _USERS_OWN:
        return
    for field in dataclasses.fields(ModelConfig):
        value = getattr(model, field.name)
        if field.name not in (*_OF_ALL_FAMILIES, *family.fields) and value != field.default:
            raise ConfigError(
                f"{path}.{field.name}={value!r}: the model {model.name!r} does not read it (it reads "
                f"{', '.join(family.fields)}); set it to {field.default!r}"
            )
    require(
        max((*model.features, 0)) <= _MAX_FEATURES and max(sum(model.blocks), len(model.features)) <= _MAX_UNITS,
        f"{path}.features={model.features}, blocks={model.blocks}: expected at most {_MAX_UNITS} units of at most "
        f"{_MAX_FEATURES} features",
    )
    require(
        not family.num_stages or len(model.blocks) in (0, family.num_stages),
        f"{path}.blocks={model.blocks}: {model.name} has {family.num_stages} stages",
    )
    family.check(model, image_size, path)
    least = family.min_image_size(model)
    require(
        image_size >= least,
        f"{path}: an image of {image_size} px is smaller than the {least} px that a {model.name!r} needs",
    )


def from_linen(network: nn.Module) -> Model:
    """Makes a Model from a Flax module.

    Its `__call__(self, image [B, H, W, C], *, train)` returns `Outputs`, or logits [B, K] alone. The module may have
    BatchNorm (its collection `batch_stats`) and dropout (fed by `apply`'s `rng`).
    """

    def init(rng: jax.Array, image: jax.Array) -> dict[str, Any]:
        return dict(network.init(rng, image, train=False))

    def apply(
        variables: Mapping[str, Any], image: jax.Array, *, train: bool, rng: jax.Array | None = None
    ) -> tuple[Any, Any]:
        rngs = {} if rng is None else {"dropout": rng}
        batch_stats = variables.get("batch_stats", {})
        if train and batch_stats:
            outputs, updated = network.apply(variables, image, train=True, rngs=rngs, mutable=["batch_stats"])
            batch_stats = updated["batch_stats"]
        else:
            outputs = network.apply(variables, image, train=train, rngs=rngs)
        return outputs, batch_stats

    return _adapted(Model(init, apply))


def _adapted(model: Model) -> Model:
    """Makes `apply` return `Outputs` with float32 logits, also where it returned logits alone."""

    def apply(variables: Mapping[str, Any], image: jax.Array, **kwargs: Any) -> tuple[Outputs, Any]:
        outputs, batch_stats = model.apply(variables, image, **kwargs)
        if not isinstance(outputs, Outputs):
            if not hasattr(outputs, "astype"):
                kind = type(outputs).__name__
                raise ConfigError(f"the network returned {kind}, expected logits [B, K] or big_distill.state.Outputs")
            outputs = Outputs(logits=outputs)
        in_float32 = {n: x.astype(jnp.float32) for n, x in vars(outputs).items() if "logits" in n and x is not None}
        return dataclasses.replace(outputs, **in_float32), batch_stats

    return Model(model.init, apply)

"""Defines the record of a family of models."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from big_distill.config import ModelConfig
from big_distill.models.folding import fold_batch_norms
from big_distill.state import Model


@dataclasses.dataclass(frozen=True)
class Family:
    """Describes a family of models; `models.FAMILIES` has one for every name.

    fields: the fields of `ModelConfig` that it reads, beside those of all families.
    min_image_size: `(model) -> side` of the smallest image, in pixels.
    build: `(model, num_classes, dtype, folded) -> network`, see `models.build`; `model.features` are its widths.
    widths: `(model) -> widths` of the layers that no skip connection ties, as published; () without any.
    check: `(model, image_size, path) -> None`; raises ConfigError. `path` is the config's name for the model.
    fold: `(model, variables) -> variables` of the folded network, see `models.fold`.
    canonical: `(model) -> model`, the same one for all configs of one network.
    num_stages: the length of `blocks`; 0: any.
    int8: True if it has convolutions that a teacher may compute in integers.
    standardizes_kernels: True if its convolutions standardise their kernels where they use them.
    options: names and defaults of the `student.options` that it reads.
    """

    fields: tuple[str, ...]
    min_image_size: Callable[[ModelConfig], int]
    build: Callable[[ModelConfig, int, str, bool], nn.Module | Model]
    widths: Callable[[ModelConfig], tuple[int, ...]] = lambda model: ()
    check: Callable[[ModelConfig, int, str], None] = lambda model, image_size, path: None
    fold: Callable[[ModelConfig, Mapping[str, Any]], dict[str, Any]] = fold_batch_norms
    canonical: Callable[[ModelConfig], ModelConfig] = lambda model: model
    num_stages: int = 0
    int8: bool = False
    standardizes_kernels: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

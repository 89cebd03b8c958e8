"""Reads cards as JSON: from inside our own files, and from a file that a person writes beside a foreign one."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from big_distill.config import BIT_DEPTH, BIT_DEPTHS, FITS, ModelConfig, freeze
from big_distill.errors import ConfigError, RunError, nearest
from big_distill.models import check_model
from big_distill.state import Card
from big_distill.weights.architecture import ConfigArchitecture

CARD_SUFFIX = ".card.json"
_MAX_SIZE = 1 << 20  # largest number in a card: a small file must not ask for a network whose shapes overflow


def from_json(text: str | bytes, path: pathlib.Path) -> ConfigArchitecture:
    """Reads an architecture from text; the inverse of `ConfigArchitecture.to_json`. `path` names the text in errors."""
    try:
        values = json.loads(text)
        card = _card(values.pop("card"), values["num_classes"])
        model: ModelConfig = freeze(ModelConfig, values.pop("model"), "card.model")
        fit = values.pop("fit", FITS[0])
        if fit not in FITS:
            raise ConfigError(f"fit={fit!r} is not known{nearest(str(fit), FITS)}")
        bit_depth = values.pop("bit_depth", BIT_DEPTH)
        if bit_depth not in BIT_DEPTHS:
            raise ConfigError(f"bit_depth={bit_depth!r}: expected one of {', '.join(map(str, BIT_DEPTHS))}")
        for name, number in values.items():
            least = 1 if name in ("channels", "resize") else 0
            if type(number) is not int or not least <= number <= _MAX_SIZE:
                raise ConfigError(f"{name}={number!r}: expected an integer from {least} to {_MAX_SIZE}")
        if not is_user_code(model):
            check_model(model, card.image_size, "card.model")
        return ConfigArchitecture(model=model, card=card, fit=fit, bit_depth=bit_depth, **values)
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} has a damaged card: {error}") from error


def card_beside(file: pathlib.Path, card: Card, num_classes: int) -> Card:
    """Returns the card of a foreign file, corrected by the JSON file beside it, if there is one.

    For teacher.pth that is teacher.card.json or teacher.pth.card.json. Its fields are those of `Card`. A `value_range`,
    such as [-1, 1], may replace mean and std: it is the range to which pixels are scaled.
    """
    paths = [
        path for path in (file.with_suffix(CARD_SUFFIX), file.with_name(file.name + CARD_SUFFIX)) if path.is_file()
    ]
    if not paths:
        return card
    if len(paths) > 1:
        raise RunError(f"{file} has two cards, {paths[0].name} and {paths[1].name}: remove one")
    (path,) = paths
    try:
        given = json.loads(path.read_text())
        names = given.get("class_names")
        if isinstance(names, list) and (twice := [x for x, n in Counter(names).items() if n > 1]):
            raise ConfigError(f"class_names has {twice[0]!r} more than once")
        if "value_range" in given:
            if given.keys() & {"mean", "std"}:
                raise ConfigError("value_range stands instead of mean and std")
            low, high = given.pop("value_range")
            given |= {"mean": [-low / (high - low)], "std": [1 / (high - low)]}
        return _card({**dataclasses.asdict(card), **given}, num_classes)
    except (ConfigError, OSError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is not a card: {error}") from error


def _card(values: Mapping[str, Any], num_classes: int) -> Card:
    """Makes a card of these values; raises ConfigError if they make none."""
    card: Card = freeze(Card, values, "card")
    if len(card.class_names) not in (0, num_classes):
        raise ConfigError(f"{len(card.class_names)} class_names, but the network has {num_classes} classes")
    if not 1 <= card.image_size <= _MAX_SIZE:
        raise ConfigError(f"image_size={card.image_size}: expected an integer from 1 to {_MAX_SIZE}")
    for name, row, least in (("mean", card.mean, -math.inf), ("std", card.std, 0)):
        if not row or min(row) <= least:
            raise ConfigError(f"{name}={row}: expected finite numbers, those of std above 0")
    return card


def is_user_code(model: ModelConfig) -> bool:
    """Returns True if a network is the user's own `module:function`."""
    return ":" in (model.name or "")

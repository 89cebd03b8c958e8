"""Reads cards as JSON: from inside our own files, and from the files that stand beside a weight file."""

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
from big_distill.weights.architecture import ConfigArchitecture, Network
from big_distill.weights.pretrained import formats
from big_distill.weights.pretrained.input_config import InputConfig

CARD_SUFFIX = ".card.json"
ASSUMED = "assumed"  # the origin of a fact that no file says
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


def place_of(file: pathlib.Path) -> pathlib.Path:
    """Returns the path of the card beside a weight file: the one that is there, else where one would be read.

    For teacher.pth.tar that is teacher.card.json, teacher.pth.card.json or teacher.pth.tar.card.json.

    Raises:
      RunError: there are several.
    """
    name = file.name.removesuffix(formats.suffix_of(file))
    places = [file.with_name(stem + CARD_SUFFIX) for stem in dict.fromkeys((name, file.stem, file.name))]
    found = [path for path in places if path.is_file()]
    if len(found) > 1:
        raise RunError(f"{file} has two cards, {found[0].name} and {found[1].name}: remove one")
    return (found or places)[0]


def card_beside(file: pathlib.Path, card: Card, num_classes: int) -> tuple[Card, dict[str, str]]:
    """Corrects the card of a file by the JSON file beside it, if there is one: see `place_of`.

    Its fields are those of `Card`. A `value_range`, such as [-1, 1], may replace mean and std: it is the range to which
    pixels are scaled.

    Returns:
      The card, and for each of its fields that the file corrects the name of the file.
    """
    path = place_of(file)
    if not path.is_file():
        return card, {}
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
        return _card({**dataclasses.asdict(card), **given}, num_classes), dict.fromkeys(given, path.name)
    except (ConfigError, OSError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is not a card: {error}") from error


def card_described(said: InputConfig, card: Card, num_classes: int, channels: int) -> tuple[Card, dict[str, str]]:
    """Corrects the card of a foreign file by a config of its own project; returns the same as `card_beside`.

    Raises:
      RunError: the config is of another network, or makes no card.
    """
    for name, theirs, ours in (("num_classes", said.num_classes, num_classes), ("channels", said.channels, channels)):
        if theirs not in (None, ours):
            raise RunError(f"{said.path} says {name}={theirs}, but the network has {ours}: correct or remove it")
    try:
        names = said.fields.get("class_names", ())
        if twice := [x for x, n in Counter(names).items() if n > 1]:
            raise ConfigError(f"it names the class {twice[0]!r} more than once")
        return _card({**dataclasses.asdict(card), **said.fields}, num_classes), dict.fromkeys(
            said.fields, said.path.name
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise RunError(f"{said.path} makes no card: {error}") from error


def in_words(network: Network) -> str:
    """Says in a line which facts about a foreign file's input others said, and which are assumed; "" of own files."""
    origins, card = network.origins, network.architecture.card
    said: dict[str, list[str]] = {}
    for field, origin in origins.items():
        said.setdefault(origin, []).append(field)
    assumed = [f"{field}={getattr(card, field)}" for field in said.pop(ASSUMED, []) if field != "class_names"]
    parts = [f"{', '.join(fields)} from {origin}" for origin, fields in said.items()]
    if assumed:
        parts.append(f"{', '.join(assumed)} assumed, as usual for {network.architecture.identity['name']}")
    if origins.get("class_names") == ASSUMED:
        parts.append("classes assumed to be in the order of the data")
    return f"{network.source}: {'; '.join(parts)}" if parts else ""


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

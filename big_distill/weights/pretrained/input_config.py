"""Reads what files of timm and Hugging Face beside a weight file say of its input and its classes.

The files are timm's config.json, in both of its layouts, and Hugging Face's preprocessor_config.json, with the names of
the classes in the config.json of transformers.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from big_distill.errors import ConfigError, RunError

_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers
_EXPRESSED = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_DAMAGED = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)


class InputConfig(NamedTuple):
    """Holds what one file says; what it does not say is None, empty or 0.

    fields: values of `Card`: image_size, mean, std, class_names.
    name: timm's name of the network.
    resize: the shorter side in pixels before the centre is cut.
    evaluation: how its authors make the input, in words, as far as a card does not have it.
    """

    path: pathlib.Path
    fields: dict[str, Any]
    name: str | None = None
    num_classes: int | None = None
    channels: int | None = None
    resize: int = 0
    evaluation: str = ""


def beside(file: pathlib.Path) -> list[InputConfig]:
    """Reads the files beside a weight file; a config.json of anything else says nothing.

    Raises:
      RunError: a damaged file, two files that do not agree, or an input that a card cannot describe.
    """
    found = []
    for name, read in (("config.json", _config), ("preprocessor_config.json", _preprocessor)):
        path = file.with_name(name)
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text())
            said = read(path, values) if isinstance(values, dict) else None
        except (ConfigError, OSError, *_DAMAGED) as error:
            raise RunError(f"{path} cannot be used for {file.name}: {error}") from error
        found += [said] if said else []
    for field in ("image_size", "mean", "std"):
        values = [said.fields[field] for said in found if field in said.fields]
        if any(value != values[0] for value in values):
            raise RunError(
                f"{file.parent}: {field} is {values[0]} in config.json, {values[1]} in {path.name}: remove one"
            )
    return found


def _config(path: pathlib.Path, values: Mapping[str, Any]) -> InputConfig | None:
    """Reads a config.json of timm, with pretrained_cfg or flat, or the classes in one of transformers."""
    config = {**values, **values.get("pretrained_cfg", {})}
    config |= {name: values[name] for name in ("num_classes", "label_names") if name in values}
    if not {"mean", "std"} <= config.keys():
        return _classes_of_transformers(path, values)
    fields: dict[str, Any] = {name: _tuple(config[name]) for name in ("mean", "std")}
    channels, size, evaluation, resize = None, 0, [], 0
    if "input_size" in config:
        channels, size, width = (int(value) for value in config["input_size"])
        if size != width:
            raise ConfigError(f"input_size={config['input_size']}: expected a square")
        fields["image_size"] = size
    if crop := config.get("crop_pct"):
        resize = math.floor(size / crop)
        evaluation.append(f"crop_pct={crop}" + f" (resized to {resize} px, then cut)" * bool(size))
    evaluation += [f"{name}={config[name]}" for name in ("interpolation", "crop_mode") if config.get(name)]
    labels = config.get("label_names", config.get("labels"))
    if labels:
        fields["class_names"] = _names(labels)
    name = ".".join(str(part) for part in (config.get("architecture"), config.get("tag")) if part)
    return InputConfig(path, fields, name or None, config.get("num_classes"), channels, resize, ", ".join(evaluation))


def _classes_of_transformers(path: pathlib.Path, values: Mapping[str, Any]) -> InputConfig | None:
    labels = values.get("id2label")
    if not labels or all(str(label).startswith("LABEL_") for label in labels.values()):
        return None
    return InputConfig(path, {"class_names": _names(labels)}, num_classes=len(labels))


def _preprocessor(path: pathlib.Path, values: Mapping[str, Any]) -> InputConfig:
    """Reads a preprocessor_config.json, whose values are of pixels in [0, 255] times rescale_factor."""
    if other := [name for name in values if name.startswith("do_") and values[name] and name not in _EXPRESSED]:
        raise ConfigError(f"{other[0]}=true: a card cannot say that")
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1
    scale = 1 if math.isclose(255 * factor, 1, rel_tol=1e-6) else 255 * factor
    shift = float(bool(values.get("rescale_offset")))
    normalized = values.get("do_normalize", "image_mean" in values)
    mean, std = (values["image_mean"], values["image_std"]) if normalized else ([0.0], [1.0])
    fields: dict[str, Any] = {
        "mean": _tuple([(shift + value) / scale for value in _tuple(mean)]),
        "std": _tuple([value / scale for value in _tuple(std)]),
    }
    size, crop = (_side(name, values[name]) if values.get(name) else 0 for name in ("size", "crop_size"))
    is_cut = values.get("do_center_crop", bool(crop)) and crop
    resize = size if is_cut else 0
    if (share := values.get("crop_pct")) and size < 384:  # as ConvNeXt's: the size is that of the cut
        resize = int(size / share)
    if size or crop:
        fields["image_size"] = crop if is_cut else size
    evaluation = [f"resized to {resize} px, then cut"] if resize else []
    if size and not resize:
        evaluation.append("the whole picture squashed to a square")
    if values.get("resample") is not None:
        evaluation.append(f"interpolation={_RESAMPLING[values['resample']]}")
    return InputConfig(path, fields, resize=resize, evaluation=", ".join(evaluation))


def _side(name: str, value: Any) -> int:
    """Reads the side of a square: 224, [224, 224], {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    sides = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    known = not isinstance(value, dict) or value.keys() in ({"shortest_edge"}, {"height", "width"})
    if not known or len(set(sides)) != 1 or type(sides[0]) is not int:
        raise ConfigError(f"{name}={value}: expected the side of a square")
    return sides[0]


def _tuple(values: Any) -> tuple[float, ...]:
    """Makes a tuple of numbers, of one number if all are the same."""
    numbers = tuple(float(value) for value in (values if isinstance(values, list | tuple) else [values]))
    return numbers[:1] if len(set(numbers)) == 1 else numbers


def _names(labels: Any) -> tuple[str, ...]:
    """Lists class names that are given as a list, or by their index."""
    if isinstance(labels, dict):
        by_index = {int(index): name for index, name in labels.items()}
        labels = [by_index[index] for index in range(len(by_index))]
    return tuple(str(name) for name in labels)

"""Defines the function that is exported, and what the writers and readers of all formats share."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from big_distill import weights
from big_distill.config import PAD_GREY
from big_distill.errors import ConfigError, DataError
from big_distill.step.views import for_network, to_unit

Classifier = Callable[[np.ndarray], np.ndarray]
"""Runs a file that was read: maps uint8 pixels [B, S, S, C], any B above 0, to float32 logits [B, K]."""
Views = Callable[[], np.ndarray]
"""Makes training views, uint8 [N, S, S, C]; the ranges of activations are measured on them."""


def pixels_to_logits(network: weights.Network) -> Callable[[jax.Array], jax.Array]:
    """Returns a network with its preprocessing as a pure function, its weights folded and constant.

    The function maps pixels, uint8 or float32 in [0, 255], [B, *pixels_shape], to logits, float32 [B, K].
    """
    architecture = network.architecture
    model = architecture.build("float32", folded=True)
    variables = architecture.fold(network.variables)

    def logits(pixels: jax.Array) -> jax.Array:
        return model.apply(variables, for_network(to_unit(pixels), architecture.card), train=False)[0].logits

    return logits


def pixels_shape(architecture: weights.ConfigArchitecture) -> tuple[int, int, int]:
    """Returns (S, S, C) of the square that evaluation cuts from one image; the network's own size may be smaller."""
    size = architecture.view_size or architecture.card.image_size
    return (size, size, architecture.channels)


def input_of(architecture: weights.ConfigArchitecture) -> dict[str, Any]:
    """Describes how to make the pixels of a file from an image, for programs without this library.

    It says what `data.decode` and `data.resample.central_view` do; README shows four programs that follow it.
    """
    size, _, channels = pixels_shape(architecture)
    side = {"crop": "shorter", "squash": "both", "pad": "longer"}[architecture.fit]
    return {
        "size": size,
        "channels": channels,
        "channel_order": "RGB" if channels == 3 else "grey: ITU-R 601 luma, 0.299 R + 0.587 G + 0.114 B",
        "layout": "NHWC",
        "dtype": "uint8",
        "range": [0, 255],
        "order": ["decode", "resize", "centre"],
        "decode": "upright, as EXIF says; transparency over white; grey of more than 8 bits: 2^bit_depth - 1 is 255",
        "bit_depth": architecture.bit_depth,
        "fit": architecture.fit,
        "resize": {
            "side": side,
            "to": architecture.resize,
            "other_side": "in proportion, to the nearest pixel, half to even, at least 1",
            "filter": "bilinear",
            "antialias": False,
            "coordinates": "half_pixel",
            "edges": "repeated",
            "values": "rounded half up",
        },
        "centre": {"size": size, "offset": "(resized - size) / 2, rounded towards 0", "beside": PAD_GREY},
        "in_the_file": {
            "resize": {"to": architecture.card.image_size, "filter": "bilinear", "antialias": True},
            "normalise": "(pixel / 255 - mean) / std",
            "mean": list(architecture.card.mean),
            "std": list(architecture.card.std),
        },
    }


def check_pixels(pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises DataError unless `pixels` are uint8 images [B, *shape], with B above 0."""
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not len(pixels):
        expected = ", ".join(map(str, shape))
        raise DataError(f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 [B, {expected}]")


@dataclasses.dataclass(frozen=True)
class Extra:
    """Names an extra of this package, its packages, and the files that need them.

    `with extra:` guards imports of the packages. It raises a ConfigError that names the extra if one is missing.
    """

    name: str
    files: str
    packages: tuple[str, ...]

    def check(self) -> None:
        """Raises ConfigError unless all packages are installed. Imports none of them."""
        if not all(map(importlib.util.find_spec, self.packages)):
            raise self._error()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, ImportError):
            raise self._error() from error

    def _error(self) -> ConfigError:
        return ConfigError(f"{self.files} files need the extra {self.name}: pip install 'big_distill[{self.name}]'")


ONNX = Extra("onnx", "ONNX", ("onnx", "onnxruntime"))
LITERT = Extra("tf", "LiteRT", ("tensorflow", "ai_edge_litert"))

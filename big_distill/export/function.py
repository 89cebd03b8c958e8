"""The function that is exported, and what the formats share."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

from big_distill import models, weights
from big_distill.errors import DataError
from big_distill.step.views import for_network, to_unit

Classifier = Callable[[np.ndarray], np.ndarray]
"""A file that was read: uint8 pixels [B, S, S, C], any B above 0, to float32 logits [B, K]."""


def pixels_to_logits(network: weights.Network) -> Callable[[jax.Array], jax.Array]:
    """A network with its preprocessing, its weights folded and constant.

    Returns:
      The pure function from pixels, uint8 or float32 in [0, 255], of `pixels_shape`, to logits float32 [B, K].
    """
    architecture = network.architecture
    model = architecture.build("float32", folded=True)
    variables = models.fold(architecture.model, network.variables)

    def logits(pixels: jax.Array) -> jax.Array:
        return model.apply(variables, for_network(to_unit(pixels), architecture.card), train=False)[0].logits

    return logits


def pixels_shape(network: weights.Network) -> tuple[int, int, int]:
    """(S, S, C) of one image: the square that evaluation cuts; the network's own size may be smaller."""
    architecture = network.architecture
    size = architecture.view_size or architecture.card.image_size
    return (size, size, architecture.channels)


def check_pixels(pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises DataError unless these are uint8 images [B, *shape], at least one."""
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not len(pixels):
        expected = ", ".join(map(str, shape))
        raise DataError(f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 [B, {expected}]")

"""The function that is exported, and what the writers and readers of all formats share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax
import numpy as np

from big_distill import weights
from big_distill.errors import ConfigError, DataError
from big_distill.step.views import for_network, to_unit

Classifier = Callable[[np.ndarray], np.ndarray]
"""A file that was read: uint8 pixels [B, S, S, C], any B above 0, to float32 logits [B, K]."""
Views = Callable[[], np.ndarray]
"""Makes training views, uint8 [N, S, S, C], to measure the ranges of activations on."""


def pixels_to_logits(network: weights.Network) -> Callable[[jax.Array], jax.Array]:
    """A network with its preprocessing, its weights folded and constant, as a pure function.

    It goes from pixels, uint8 or float32 in [0, 255], [B, *pixels_shape], to logits, float32 [B, K].
    """
    architecture = network.architecture
    model = architecture.build("float32", folded=True)
    variables = architecture.fold(network.variables)

    def logits(pixels: jax.Array) -> jax.Array:
        return model.apply(variables, for_network(to_unit(pixels), architecture.card), train=False)[0].logits

    return logits


def pixels_shape(architecture: weights.ConfigArchitecture) -> tuple[int, int, int]:
    """(S, S, C) of one image: the square that evaluation cuts; the network's own size may be smaller."""
    size = architecture.view_size or architecture.card.image_size
    return (size, size, architecture.channels)


def check_pixels(pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises DataError unless these are uint8 images [B, *shape], at least one."""
    if pixels.dtype != np.uint8 or pixels.shape[1:] != shape or not len(pixels):
        expected = ", ".join(map(str, shape))
        raise DataError(f"pixels are {pixels.dtype} {list(pixels.shape)}: expected uint8 [B, {expected}]")


@contextlib.contextmanager
def extra(name: str, files: str) -> Iterator[None]:
    """Imports of packages that an extra installs; without them a ConfigError says which."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"{files} files need the extra {name}: pip install 'big_distill[{name}]'") from error

"""Loads a network with its preprocessing from any file that holds one, and classifies images with it."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable

import jax
import numpy as np
import scipy.special

from big_distill import weights
from big_distill.data.decode import BadImage, decode
from big_distill.data.resample import Ragged, central_view
from big_distill.errors import DataError, RunError
from big_distill.export.formats import FORMATS, read_card
from big_distill.export.function import Classifier, pixels_shape
from big_distill.step.views import for_network, to_unit

Image = np.ndarray | bytes


@dataclasses.dataclass(frozen=True)
class Predictor:
    """Classifies images with a network and its preprocessing.

    classify: maps uint8 pixels [B, S, S, C], any B above 0, to float32 logits [B, K]; S is the side of the view.
    """

    architecture: weights.ConfigArchitecture
    classify: Classifier

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the names in the order of the probabilities; empty if the data set had none."""
        return self.architecture.card.class_names

    def predict(self, images: np.ndarray | Iterable[Image]) -> np.ndarray:
        """Classifies images as evaluation does: it makes them square as the network's `fit` says.

        Args:
          images: uint8 arrays [H, W], [H, W, 1] or [H, W, 3] of any sizes, or the bytes of image files; or one array
            [B, H, W, C].

        Returns:
          Probabilities, float32 [B, K].

        Raises:
          DataError: an image that cannot be read, which the message names.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise DataError(f"the images have shape {images.shape}: expected [B, H, W, C], or a list of images")
        if isinstance(images, bytes) or not isinstance(images, Iterable):
            got = "the bytes of one image" if isinstance(images, bytes) else type(images).__name__
            raise DataError(f"expected a list of images, got {got}")
        decoded = [self._decode(index, image) for index, image in enumerate(images)]
        if not decoded:
            return np.zeros((0, self.architecture.num_classes), np.float32)
        architecture, everything = self.architecture, np.arange(len(decoded))
        size = pixels_shape(architecture)[0]
        pixels = central_view(Ragged.pack(decoded), everything, architecture.resize, size, architecture.fit)
        return scipy.special.softmax(self.classify(pixels), axis=-1)

    def _decode(self, index: int, image: Image) -> np.ndarray:
        if not isinstance(image, np.ndarray | bytes):
            kind = type(image).__name__
            raise DataError(f"image {index}: expected a uint8 array or the bytes of an image file, got {kind}")
        try:
            return decode(image, self.architecture.channels, self.architecture.bit_depth)
        except BadImage as error:
            raise DataError(f"image {index} cannot be read: {error}") from error


def load(path: str | pathlib.Path, otherwise: weights.ConfigArchitecture | None = None) -> Predictor:
    """Loads a network from a finished run directory or from any file that holds one, exported files included.

    >>> import big_distill
    >>> network = big_distill.load("runs/digits_fm-0123456789ab")  # doctest: +SKIP
    >>> network.predict(images).argmax(-1)  # doctest: +SKIP

    `otherwise` is that of `weights.load`: it lets a file ask for the user's own code.

    Raises:
      RunError: no such file, a damaged one, or a network without classes.
    """
    file = pathlib.Path(path)
    read = next((format_.read for format_ in FORMATS.values() if format_.suffix == file.suffix), None)
    return of_network(weights.load(path, otherwise)) if read is None else Predictor(read_card(file), read(file))


def of_network(network: weights.Network) -> Predictor:
    """Makes a Predictor that computes a network with JAX, in float32."""
    architecture = network.architecture
    if not architecture.num_classes:
        raise RunError(f"{network.source} has no classes to predict")
    model, variables = architecture.build("float32"), jax.device_put(network.variables)

    def logits(variables: weights.Variables, pixels: jax.Array) -> jax.Array:
        return model.apply(variables, for_network(to_unit(pixels), architecture.card), train=False)[0].logits

    compiled = jax.jit(logits)
    return Predictor(architecture, lambda pixels: np.asarray(compiled(variables, pixels)))

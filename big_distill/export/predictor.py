"""A finished run or a weight file as something that classifies images."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

import numpy as np
import scipy.special

from big_distill.data import transforms
from big_distill.errors import DataError
from big_distill.export import executable

Image = np.ndarray | bytes


class Predictor:
    """A network with its preprocessing.

    Attributes:
      architecture: what the network is and expects.
      class_names: in the order of the probabilities; empty if the data set had no names.
    """

    def __init__(self, network: executable.Executable):
        self.architecture = network.architecture
        self.class_names = network.architecture.card.class_names
        self._classify = network.classify

    def predict(self, images: np.ndarray | Iterable[Image]) -> np.ndarray:
        """Classifies images as evaluation does: shorter side resized, central crop.

        Args:
          images: uint8 arrays [H, W], [H, W, 1] or [H, W, 3] of any sizes, or the bytes of image files; or one array
            [B, H, W, C].

        Returns:
          Probabilities, float32 [B, K].

        Raises:
          DataError: an image that cannot be read; says which.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise DataError(f"an array of shape {images.shape}: expected [B, H, W, C], or a list of images")
        if isinstance(images, bytes):
            raise DataError("expected a list of images, got the bytes of one")
        decoded = [self._decode(index, image) for index, image in enumerate(images)]
        if not decoded:
            return np.zeros((0, self.architecture.num_classes), np.float32)
        ragged = transforms.Ragged.pack(decoded)
        size = self.architecture.view_size or self.architecture.card.image_size
        pixels = transforms.central_view(ragged, np.arange(len(decoded)), self.architecture.resize, size)
        return scipy.special.softmax(self._classify(pixels), axis=-1)

    def _decode(self, index: int, image: Image) -> np.ndarray:
        if not isinstance(image, np.ndarray | bytes):
            kind = type(image).__name__
            raise DataError(f"image {index}: expected a uint8 array or the bytes of an image file, got {kind}")
        try:
            return transforms.decode(image, self.architecture.channels)
        except transforms.BadImage as error:
            raise DataError(f"image {index} cannot be read: {error}") from error


def load(path: str | pathlib.Path) -> Predictor:
    """A network from a finished run directory, or from any file that has one, exported files included.

    >>> import big_distill
    >>> network = big_distill.load("runs/digits_fm-0123456789ab")  # doctest: +SKIP
    >>> network.predict(images).argmax(-1)  # doctest: +SKIP

    Raises:
      RunError: nothing there, or not such a file.
    """
    return Predictor(executable.read(path))

"""The input of training and evaluation: sources of examples, random draws, and batches of square uint8 views.

A data set of your own is a `module:function`: called with (source config, split), it returns a `Source`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

Example = tuple[bytes | np.ndarray, int]
"""An encoded image, or its pixels (uint8 [H, W] or [H, W, C]); and its label, -1 without one."""


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set. `array_source` makes it from arrays; `sources.open_source` by name.

    name: for messages.
    num_examples: of this split.
    num_classes: None when there are no labels.
    class_names: in the order of the labels; may be empty.
    fingerprint: changes when the examples or their order do.
    read: ids, int64 [B] -> B examples; called from several threads.
    example_name: id -> what a person can find it by.
    """

    name: str
    num_examples: int
    num_classes: int | None
    class_names: tuple[str, ...]
    fingerprint: str
    read: Callable[[np.ndarray], Sequence[Example]]
    example_name: Callable[[int], str]


def array_source(
    name: str, images: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] = ()
) -> Source:
    """A source of arrays in memory: images uint8 [N, H, W] or [N, H, W, C], labels int [N], a name for each class."""
    numbers = np.full(len(images), -1) if labels is None else labels
    digest = hashlib.sha256(repr((images.shape, labels is None, tuple(class_names))).encode())
    digest.update(images.tobytes())
    digest.update(numbers.astype(np.int64).tobytes())
    return Source(
        name=name,
        num_examples=len(images),
        num_classes=None if labels is None else len(class_names),
        class_names=tuple(class_names),
        fingerprint=digest.hexdigest(),
        read=lambda ids: [(images[i], int(numbers[i])) for i in ids],
        example_name=lambda i: f"{name} #{i}",
    )

"""Feeds training and evaluation: opens sources of examples, makes random draws, and batches square uint8 views.

A data set of your own is a `module:function`. It is called with (source config, split) and returns a `Source`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from big_distill.config import BIT_DEPTH
from big_distill.errors import DataError

Example = tuple[bytes | np.ndarray, int]
"""Holds an encoded image, or its pixels (uint8 [H, W] or [H, W, C]), and its label, which is -1 where there is none."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Describes one split of a data set. `array_source` makes it from arrays, and `sources.open_source` by name.

    name: name of the split in messages.
    num_examples: number of examples in this split.
    num_classes: number of classes; None without labels.
    class_names: names in the order of the labels; may be empty.
    fingerprint: text that changes when the examples or their order do.
    read: function from ids, int64 [B], to B examples; several threads call it.
    example_name: function from an id to a name by which a person finds the example.
    empty_classes: names of the classes without an example in this split, as far as they are known before it is read.
    labels: all labels, int64 [N], if they are known before the examples are read.
    remarks: lines that a command prints when it opens the split.
    bit_depth: bits that are used of each value in files of more than 8.
    sizes: heights and widths of a sample of the images; () if no sample was looked at.
    """

    name: str
    num_examples: int
    num_classes: int | None
    class_names: tuple[str, ...]
    fingerprint: str
    read: Callable[[np.ndarray], Sequence[Example]]
    example_name: Callable[[int], str]
    empty_classes: tuple[str, ...] = ()
    labels: np.ndarray | None = None
    remarks: tuple[str, ...] = ()
    bit_depth: int = BIT_DEPTH
    sizes: tuple[tuple[int, int], ...] = ()

    def part(self, ids: np.ndarray) -> Source:
        """Makes a source of some of the examples, int64 [n], in this order."""
        labels, empty = None, self.empty_classes
        if self.labels is not None:
            labels = self.labels[ids]
            gone = np.setdiff1d(self.labels, [*labels, -1])
            empty += tuple(self.class_names[i] for i in gone if i < len(self.class_names))
        return dataclasses.replace(
            self,
            num_examples=len(ids),
            fingerprint=hashlib.sha256(f"{self.fingerprint} {ids.tolist()}".encode()).hexdigest(),
            read=lambda rows: self.read(ids[rows]),
            example_name=lambda i: self.example_name(int(ids[i])),
            empty_classes=empty,
            labels=labels,
        )


def array_source(
    name: str, images: np.ndarray, labels: np.ndarray | None = None, class_names: Sequence[str] = ()
) -> Source:
    """Makes a source of arrays: images uint8 [N, H, W] or [N, H, W, C], labels int [N], a name for each class.

    A label counts from 0 in the order of the names. It is -1 for an example without one.

    Raises:
      DataError: the labels are not such integers.
    """
    numbers = np.full(len(images), -1) if labels is None else np.asarray(labels)
    if numbers.ndim == 2 and numbers.shape[1] > 1:
        raise DataError(f"{name}: labels of shape {numbers.shape}; labels.argmax(1) makes integers of one-hot ones")
    if numbers.shape != (len(images),) or not np.issubdtype(numbers.dtype, np.integer):
        raise DataError(
            f"{name}: labels have shape {numbers.shape} and dtype {numbers.dtype}, expected {len(images)} integers, "
            "one for each image"
        )
    if labels is not None and not class_names:
        raise DataError(f"{name}: labels need class_names, a name for each class in the order of the labels")
    if labels is not None and len(wrong := np.flatnonzero((numbers < -1) | (numbers >= len(class_names)))):
        raise DataError(
            f"{name} #{wrong[0]} has the label {numbers[wrong[0]]}, but there are {len(class_names)} class names: "
            f"expected 0 to {len(class_names) - 1}, or -1 for an example without a label"
        )
    present = set(numbers.tolist()) - {-1}
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
        labels=None if labels is None else numbers.astype(np.int64),
        empty_classes=tuple(name for i, name in enumerate(class_names) if i not in present) if present else (),
    )

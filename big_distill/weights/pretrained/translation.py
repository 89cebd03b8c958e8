"""Applies a translator's table of names (`apply`), and describes what a translator returns (`Translated`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from big_distill.config import ModelConfig
from big_distill.errors import RunError
from big_distill.models import bit

Table = dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]]
"""Our name, such as params/head/kernel -> (their name, the function that makes our array of theirs)."""


class Translated(NamedTuple):
    """Holds the network of another project's file under our names.

    arrays: float32, by path, such as params/head/kernel or batch_stats/stem/norm/mean.
    image_size, mean, std: those of the input with which its authors evaluate, for a `Card`; image_size is 0 if unknown.
    named: True if mean and std are known by the network's name; else they are the usual ones of such networks.
    """

    model: ModelConfig
    arrays: dict[str, np.ndarray]
    image_size: int = 224
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    channels: int = 3
    named: bool = False

    @property
    def num_classes(self) -> int:
        """Counts the biases of the head."""
        return len(self.arrays["params/head/bias"])


def apply(table: Table, arrays: Mapping[str, np.ndarray], recognised: str) -> dict[str, np.ndarray]:
    """Returns all arrays under our names.

    Raises:
      RunError: arrays that are missing, not in the table or of an impossible shape; `recognised` begins the message.
    """
    wanted = {theirs for theirs, _ in table.values()}
    missing, unknown = sorted(wanted - arrays.keys()), sorted(arrays.keys() - wanted)
    if missing or unknown:
        raise RunError(
            f"{recognised}, but {len(missing)} of its arrays are missing ({', '.join(missing[:3]) or '-'}) "
            f"and {len(unknown)} are not known ({', '.join(unknown[:3]) or '-'})"
        )
    translated = {}
    for ours, (theirs, convert) in table.items():
        try:
            translated[ours] = np.ascontiguousarray(convert(arrays[theirs]), np.float32)
        except (IndexError, ValueError) as error:
            raise RunError(f"{recognised}, but {theirs} has shape {arrays[theirs].shape}: {error}") from error
    return translated


def bit_model(blocks: tuple[int, ...], root_features: int, root_pool: str) -> ModelConfig:
    """Describes the BiT with so many units in each stage and so many channels in the root."""
    depth = next((depth for depth, known in bit.BLOCKS.items() if known == blocks), 0)
    return ModelConfig(
        "bit", depth=depth, blocks=() if depth else blocks, width=root_features / 64, root_pool=root_pool
    )

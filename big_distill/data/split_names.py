"""Reads the names of splits in TFDS syntax: 'train', 'train[:90%]', 'train+validation', 'test[10:20]'."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from big_distill.errors import DataError


def base_splits(split: str) -> list[str]:
    """Lists the splits of a set that a name is made of: those of 'train[:90%]+test' are 'train' and 'test'."""
    return [part.partition("[")[0].strip() for part in split.split("+")]


def split_ids(name: str, split: str, lengths: Mapping[str, int]) -> np.ndarray:
    """Lists the examples of a split, in TFDS syntax: int64 [N], counted through the base splits of the set in order.

    Raises:
      DataError: the set has no such split or slice, or it holds no examples.
    """
    parts = re.split(r"\s*\+\s*", split)
    if all(part in lengths for part in parts):
        ranges = [(part, 0, lengths[part]) for part in parts]
    else:
        import tensorflow_datasets as tfds  # here, so that plain splits do not wait for it

        infos = {n: tfds.core.SplitInfo(name=n, shard_lengths=[length], num_bytes=0) for n, length in lengths.items()}
        try:
            absolute = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
        except (ValueError, NotImplementedError) as error:
            reason = str(error).splitlines()[-1].split(". ")[0]
            raise DataError(f"{name}: {reason}; its splits are {', '.join(lengths)}") from error
        ranges = [(a.splitname, a.from_ or 0, lengths[a.splitname] if a.to is None else a.to) for a in absolute]
    starts = dict(zip(lengths, np.cumsum([0, *lengths.values()]), strict=False))
    ids = np.concatenate([starts[part] + np.arange(begin, end, dtype=np.int64) for part, begin, end in ranges])
    if not len(ids):
        raise DataError(f"{name}: split {split!r} holds no examples")
    return ids

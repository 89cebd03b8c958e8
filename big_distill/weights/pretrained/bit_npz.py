"""Translates the two public releases of BiT as .npz: Big Transfer's own, and the distillation paper's.

Their roots pool differently (see `models.bit.Root`). Only the names of the arrays tell them apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

import numpy as np

from big_distill.errors import RunError
from big_distill.weights.pretrained.names import image_size
from big_distill.weights.pretrained.translation import Table, Translated, apply, bit_model

_BIG_TRANSFER_ROOT = "resnet/root_block/standardized_conv2d/kernel"
_DISTILLATION_ROOT = "root_block/conv_root/kernel"


def translate(arrays: Mapping[str, np.ndarray], source: str) -> Translated:
    """Translates a BiT of either release to our names; blocks, width and classes follow from names and shapes.

    Args:
      arrays: by the file's names. Big Transfer's: `resnet/block1/unit01/a/standardized_conv2d/kernel`, the layers
        numbered in some files (`standardized_conv2d_3`); the distillation release's: `block1/unit01/conv1/kernel`.
      source: path or address, for the errors.

    Raises:
      RunError: an array that neither release has, or a missing array.
    """
    by_name = {_plain(name): array for name, array in arrays.items()}
    big_transfer = _BIG_TRANSFER_ROOT in by_name
    root = by_name.get(_BIG_TRANSFER_ROOT if big_transfer else _DISTILLATION_ROOT)
    if root is None or root.ndim != 4:
        raise RunError(
            f"{source} is no BiT: expected {_BIG_TRANSFER_ROOT} or {_DISTILLATION_ROOT}, "
            f"found {', '.join(sorted(arrays)[:3]) or 'nothing'}"
        )
    units = {match.groups() for match in (re.search(r"(block\d+)/(unit\d+)/", name) for name in by_name) if match}
    counts = Counter(block for block, _ in units)
    blocks = tuple(counts[block] for block in sorted(counts))
    recognised = f"{source} is a BiT of {'Big Transfer' if big_transfer else 'the distillation release'}"
    translated = apply(_table(blocks, big_transfer), by_name, recognised)
    model = bit_model(blocks, root.shape[-1], "zero" if big_transfer else "-inf")
    return Translated(model, translated, image_size(source), channels=root.shape[2])


def _plain(name: str) -> str:
    name = re.sub(r"(standardized_conv2d|group_norm|conv2d)_\d+(?=/)", r"\1", name)
    return name.removeprefix("params/")


def _table(blocks: tuple[int, ...], big_transfer: bool) -> Table:
    table: Table = {}

    def conv(theirs: str, ours: str) -> None:
        name = f"resnet/{theirs}/standardized_conv2d" if big_transfer else ours
        table[f"params/{ours}/kernel"] = (f"{name}/kernel", np.asarray)

    def norm(theirs: str, ours: str) -> None:
        for kind, greek in (("scale", "gamma"), ("bias", "beta")):
            name = f"resnet/{theirs}group_norm/{greek}" if big_transfer else f"{ours}/{kind}"
            table[f"params/{ours}/{kind}"] = (name, np.ravel)

    conv("root_block", "root_block/conv_root")
    for i, num_units in enumerate(blocks, 1):
        for j in range(1, num_units + 1):
            unit = f"block{i}/unit{j:02d}"
            if j == 1:
                conv(f"{unit}/a/proj", f"{unit}/conv_proj")
            for k, letter in enumerate("abc", 1):
                conv(f"{unit}/{letter}", f"{unit}/conv{k}")
                norm(f"{unit}/{letter}/", f"{unit}/gn{k}")
    norm("", "norm-pre-head")
    head = "resnet/head/conv2d" if big_transfer else "head"
    table["params/head/kernel"] = (f"{head}/kernel", lambda x: x.reshape(-1, x.shape[-1]))
    table["params/head/bias"] = (f"{head}/bias", np.ravel)
    return table

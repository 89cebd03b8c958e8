"""Compares the orders that the classes of a teacher without class names may have."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from big_distill import weights
from big_distill.terminal import percent

_AGAIN = " and train in another --workdir"
_DEVIATIONS = 3.0  # of a binomial count: further from chance, or from another order, is no accident


def _natural(name: str) -> list[Any]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


_KEYS = {
    "string": lambda name: name,
    "natural": _natural,
    "case-blind": lambda name: (name.casefold(), name),
    "natural case-blind": lambda name: (_natural(name.casefold()), name),
}


def candidates(class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Returns the orders of the data's classes, K names, other than their own in which tools put folders.

    Returns:
      For each order by name the index of each class in it; orders that are the same are there once.
    """
    orders: dict[tuple[int, ...], str] = {tuple(range(len(class_names))): ""}
    for order, key in _KEYS.items():
        positions = {name: index for index, name in enumerate(sorted(class_names, key=key))}
        orders.setdefault(tuple(positions[name] for name in class_names), order)
    return {order: positions for positions, order in orders.items() if order}


def hits(
    logits: jax.Array, label: jax.Array | None, mask: jax.Array, orders: Mapping[str, tuple[int, ...]]
) -> jax.Array:
    """Counts the examples of a batch that a teacher classifies right if its classes are in these orders, int32 [M].

    Args:
      logits: float32 [B, K], in the teacher's own order.
      label: int32 [B], -1 for an example without one; None from an unlabelled source.
      mask: bool [B], False for a row that does not count.
      orders: M orders, as `candidates` returns them.
    """
    if label is None or not orders:
        return jnp.zeros(len(orders), jnp.int32)
    expected = jnp.asarray(list(orders.values()), jnp.int32)[:, label]
    right = (jnp.argmax(logits, -1) == expected) & mask & (label >= 0)
    return jnp.sum(right, -1, dtype=jnp.int32)


def warning(network: weights.Network, result: Mapping[str, Any], class_names: Sequence[str], who: str) -> str:
    """Says in a line what is known of the order of a teacher's classes; "" if there is nothing to warn of.

    Args:
      network: the teacher.
      result: its entry of `check.measure`; an earlier version kept some without `num_labelled`.
      class_names: class names of the data.
      who: the teacher, in words.
    """
    accuracy, count, num_classes = result["accuracy"], result.get("num_labelled"), network.architecture.num_classes
    if count is None or not num_classes:
        return ""
    near_chance = accuracy is not None and accuracy <= 1 / num_classes + _noise(1 / num_classes, count)
    score = f"{percent(accuracy)} of its answers are right"
    if near_chance:
        score += f", which is near chance ({percent(1 / num_classes)})"
    if network.architecture.card.class_names:
        return f"{who}: {score}; is it trained, and is its card right (image_size, mean, std)?" if near_chance else ""
    begin = f"{who} has no class names, and its logits are taken in the order of the data's classes"
    if accuracy is None:
        remedy = f"no labels are here to check that; {_remedy(network, class_names)}"
        return f"{begin}; {remedy}" if candidates(class_names) else ""
    found = {order: result["orders"][order] for order in candidates(class_names) if order in result["orders"]}
    tried = "".join(f"; in {order} order {percent(share)}" for order, share in found.items())
    best = max(found, key=lambda order: found[order], default="")
    if best and found[best] - accuracy > _noise(found[best], count):
        remedy = _remedy(network, sorted(class_names, key=_KEYS[best]))
        return f"{begin}: {score}{tried}. Its own is the {best} order: {remedy}"
    if near_chance and class_names:
        remedy = _remedy(network, class_names)
        return f"{begin}: {score}{tried}. If its own order is another, put the names in that: {remedy}"
    return f"{begin}: {score}{tried}" if near_chance or tried else ""


def _noise(share: float, count: int) -> float:
    return _DEVIATIONS * math.sqrt(share * (1 - share) / count)


def _remedy(network: weights.Network, order: Sequence[str]) -> str:
    place = weights.card_place(network.source)
    names = json.dumps({"class_names": list(order)}, ensure_ascii=False)
    return (f"add {names[1:-1]} to {place}" if place.is_file() else f"write {names} to {place}") + _AGAIN

"""Which files are the best at their size."""

from __future__ import annotations

from collections.abc import Sequence


def front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """For each point whether none costs no more and gains no less, one of them strictly."""
    kept = [False] * len(costs)
    best, best_cost = float("-inf"), float("nan")
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if gains[index] > best or (gains[index] == best and costs[index] == best_cost):
            kept[index] = True
            best, best_cost = gains[index], costs[index]
    return kept

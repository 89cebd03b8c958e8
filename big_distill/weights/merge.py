"""New variables with the leaves of a trained network: what a run starts from."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from big_distill.errors import RunError
from big_distill.state import path_name
from big_distill.weights.variables import Variables


@dataclasses.dataclass(frozen=True)
class Merge:
    """A tree with another's leaves, and what became of them.

    loaded: names of the leaves that were taken over.
    fresh: names of those that stayed as they were.
    unused: names of the given ones that found no place.
    """

    variables: Variables
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            return f" ({', '.join(names[:4])}{', ...' * (len(names) > 4)})" if names else ""

        return (
            f"{len(self.loaded)} parameters loaded, {len(self.fresh)} new{some(self.fresh)}, "
            f"{len(self.unused)} unused{some(self.unused)}"
        )


def merge(variables: Variables, given: Variables, fresh: str | None, path: str) -> Merge:
    """Takes every leaf from `given`, except those whose path below the collection (head/kernel) matches `fresh`.

    Raises:
      RunError: a leaf that is neither there in this shape nor matched by `fresh`.
    """
    theirs = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(given)}
    loaded: list[str] = []
    kept: list[str] = []

    def leaf(key: jax.tree_util.KeyPath, ours: Any) -> Any:
        name = path_name(key)
        if fresh and re.fullmatch(fresh, name.partition("/")[2]):
            kept.append(name)
            return ours
        if name not in theirs or theirs[name].shape != ours.shape:
            shape = theirs[name].shape if name in theirs else "missing"
            raise RunError(
                f"{path} does not fit this student: {name} is {shape} there and {ours.shape} here; "
                "config.init_fresh names what is to start anew, such as head/.*"
            )
        loaded.append(name)
        return theirs[name]

    merged = jax.tree_util.tree_map_with_path(leaf, variables)
    if fresh and not kept:
        raise RunError(f"config.init_fresh={fresh!r} matches no parameter, e.g. not {loaded[0].partition('/')[2]}")
    return Merge(merged, tuple(loaded), tuple(kept), tuple(sorted(theirs.keys() - set(loaded))))

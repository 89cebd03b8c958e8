"""Compresses a student: represents its parameters while they train, and makes a smaller network of it.

A `Scheme` says how they are represented: pruned, shared, as integers, in bfloat16. `channels` and `low_rank` make
another network of the one that a run starts from.
"""

from big_distill.compress.scheme import Scheme, by_layer, make_scheme, matching

__all__ = ["Scheme", "by_layer", "make_scheme", "matching"]

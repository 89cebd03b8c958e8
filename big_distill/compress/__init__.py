"""What becomes of a student's parameters: how they are represented while they train, and in what smaller network.

`plan` says how they are represented: pruned, shared, as integers, in bfloat16. `channels` and `low_rank` make another
network of the one that a run starts from.
"""

from big_distill.compress.plan import Plan, by_layer, matching, plan

__all__ = ["Plan", "by_layer", "matching", "plan"]

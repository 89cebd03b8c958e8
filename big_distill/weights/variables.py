"""What can be said of a network's variables, whatever the network: how many they are, and their hash."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill.parallel import sharding
from big_distill.state import path_name

Variables = dict[str, Any]
"""{"params": ..., "batch_stats": ...}, the latter only if the network has any."""


def num_params(params: Any) -> int:
    """How many numbers a tree of parameters holds."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def num_nonzero(params: Any) -> int:
    """How many of them are not zero."""
    return sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(params))


def sha256(params: Any) -> str:
    """Hash of every parameter's path, dtype, shape and bytes, in order of the paths; of split ones in all processes."""
    digest = hashlib.sha256()
    leaves = sorted((path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params))
    for name, value in leaves:
        # A jax.Array keeps its first host copy: of a fresh one this hashes what the device holds now.
        array = np.ascontiguousarray(sharding.to_host(jnp.copy(value) if isinstance(value, jax.Array) else value))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

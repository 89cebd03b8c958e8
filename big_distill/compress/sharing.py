"""Shares weights: every weight that is not zero becomes one of a few values (Han et al. 2016, "Deep Compression").

The paper is arXiv 1510.00149, section 3. The run trains the values: a value's gradient is the sum over the weights that
have it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

NUM_ITERATIONS = 100


def share(kernel: jax.Array, bits: int, initial: str, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Runs k-means in one dimension on the weights that are not zero.

    Args:
      kernel: float32, any shape.
      bits: bits of a code: there are 2^bits values beside zero.
      initial: first values: 'linear' (evenly between the smallest and the largest weight: best in section 3.2),
        'density' (evenly among the weights in order of size) or 'random' (a weight drawn from each 2^bits-th).
      key: random key for 'random'.

    Returns:
      (values, float32 [2^bits], rising; codes, uint16 as `kernel`: 0 is zero, i + 1 is values[i]).
    """
    weights = kernel.reshape(-1)
    used = weights != 0
    num_used = jnp.maximum(used.sum(), 1)
    count = 2**bits
    rising = jnp.sort(jnp.where(used, weights, jnp.inf))  # the first `num_used` are the weights
    if initial == "linear":
        values = jnp.linspace(rising[0], rising[num_used - 1], count)
    elif initial == "density":
        values = rising[((jnp.arange(count) + 0.5) / count * num_used).astype(jnp.int32)]
    else:
        values = rising[((jnp.arange(count) + jax.random.uniform(key, (count,))) / count * num_used).astype(jnp.int32)]
    values = jnp.where(used.any(), values, 0.0)

    def nearest(values: jax.Array) -> jax.Array:
        return jnp.searchsorted((values[1:] + values[:-1]) / 2, weights)

    def lloyd(_: int, values: jax.Array) -> jax.Array:
        codes = nearest(values)
        sums = jax.ops.segment_sum(jnp.where(used, weights, 0), codes, count)
        sizes = jax.ops.segment_sum(used.astype(jnp.int32), codes, count)
        return jnp.sort(jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), values))

    values = jax.lax.fori_loop(0, NUM_ITERATIONS, lloyd, values)
    codes = jnp.where(used, nearest(values) + 1, 0).astype(jnp.uint16)
    return values, codes.reshape(kernel.shape)

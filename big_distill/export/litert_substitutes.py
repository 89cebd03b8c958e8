"""Primitives of JAX that LiteRT has not, by others that it has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Substitutes = Mapping[str, Callable[..., jax.Array]]
"""By the name of the primitive: from its inputs and parameters to its output."""

_P = (
    -2.72614226e-10,
    2.77068142e-08,
    -2.10102402e-06,
    -5.69250640e-05,
    -7.34990631e-04,
    -2.95459981e-03,
    -1.60960333e-02,
)
_Q = (-1.45660718e-05, -2.13374056e-04, -1.68282697e-03, -7.37332917e-03, -1.42647391e-02)


def _erf(x: jax.Array, **_: Any) -> jax.Array:
    """Eigen's x P(x^2) / Q(x^2), to 4e-7; the converter does not know StableHLO's."""
    x = jnp.clip(x, -4, 4)
    p, q = (functools.reduce(lambda total, factor: total * x**2 + factor, factors) for factors in (_P, _Q))
    return x * p / q


def _erf_in_int8(x: jax.Array, **_: Any) -> jax.Array:
    """By tanh, to 5e-4, as GELU is often computed: the terms of the polynomials do not fit into int8."""
    return jnp.tanh(2 / np.sqrt(np.pi, dtype=np.float32) * (x + 0.08943 * x**3))


def _max_pool_in_int8(
    x: jax.Array, *, window_dimensions: Any, window_strides: Any, padding: Any, **_: Any
) -> jax.Array:
    """Padded with the pixels at the edge, which changes no maximum: int8 has no -inf."""
    x = jnp.pad(x, padding, mode="edge")
    return lax.reduce_window(x, -jnp.inf, lax.max, window_dimensions, window_strides, "VALID")


def _neg_in_int8(x: jax.Array) -> jax.Array:
    """As a product: LiteRT negates floats alone."""
    return x * -1


IN_FLOATS: Substitutes = {"erf": _erf, "erfc": lambda x, **_: 1 - _erf(x)}
IN_INT8: Substitutes = {
    "erf": _erf_in_int8,
    "erfc": lambda x, **_: 1 - _erf_in_int8(x),
    "neg": _neg_in_int8,
    "reduce_window_max": _max_pool_in_int8,
}

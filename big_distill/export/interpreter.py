"""Evaluates a jaxpr equation by equation, for writers that treat some equations in their own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

_CALLS = {"custom_jvp_call": "call_jaxpr", "jit": "jaxpr"}


def interpret(
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    inputs: Sequence[Any],
    evaluate: Callable[[core.JaxprEqn, list[Any]], Sequence[Any]],
) -> list[Any]:
    """Computes the outputs of a jaxpr.

    It skips what no output depends on, such as the maps of a network whose logits are exported. It enters calls. It
    takes the default of `lax.platform_dependent`: the plain operation that every other framework has, not the CPU's
    substitute.

    Args:
      jaxpr: a jaxpr made by `jax.make_jaxpr`.
      consts, inputs: values of its variables; anything that stands for an array.
      evaluate: function from an equation and its inputs to its outputs; constants arrive as np.ndarray.
    """
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    known = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    known |= zip(jaxpr.invars, inputs, strict=True)

    def value(atom: Any) -> Any:
        return np.asarray(atom.val, type_of(atom).dtype) if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        name, values = eqn.primitive.name, [value(atom) for atom in eqn.invars]
        outputs: Sequence[Any]
        if name == "platform_index":
            outputs = [np.array(eqn.params["platforms"].index(None))]
        elif name == "cond" and isinstance(values[0], np.ndarray):
            branch = eqn.params["branches"][int(values[0])]
            outputs = interpret(branch.jaxpr, branch.consts, values[1:], evaluate)
        elif name in _CALLS:
            inner = eqn.params[_CALLS[name]]
            outputs = interpret(inner.jaxpr, inner.consts, values, evaluate)
        else:
            outputs = evaluate(eqn, values)
        known |= zip(eqn.outvars, outputs, strict=True)
    return [value(atom) for atom in jaxpr.outvars]


def type_of(atom: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of an input or output of an equation."""
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def bind(eqn: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
    """Computes an equation as JAX does."""
    outputs = eqn.primitive.bind(*values, **eqn.params)
    return outputs if eqn.primitive.multiple_results else [outputs]

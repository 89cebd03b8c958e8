"""Writes each primitive of JAX in ONNX: a rule maps an equation and its inputs to its output.

To add a primitive, add it to `ELEMENTWISE` or write a function under its name in `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jax import lax
from jax.extend import core

from big_distill.errors import RunError
from big_distill.export.interpreter import type_of
from big_distill.export.onnx_builder import Builder, Tensor, Value, has_batch, transposed

ELEMENTWISE = {"ge": "GreaterOrEqual", "logistic": "Sigmoid"} | {
    name: name.capitalize() for name in ("abs", "add", "div", "exp", "mul", "neg", "sqrt", "sub", "tanh")
}
_NHWC = (0, 3, 1, 2)  # the axes of an NHWC image in the order of NCHW


def write(builder: Builder, eqn: core.JaxprEqn, values: Sequence[Value]) -> Value:
    """Appends the nodes of an equation with one output.

    Raises:
      RunError: a primitive, or a use of one, that has no rule here.
    """
    name = eqn.primitive.name
    if sum(has_batch([size]) for size in _shape(eqn)) != 1:
        raise _unsupported(eqn, " across images")
    if name in RULES:
        return RULES[name](builder, eqn, *values)
    if name in ELEMENTWISE:
        return builder.elementwise(_shape(eqn), ELEMENTWISE[name], *values)
    raise _unsupported(eqn)


def _unsupported(eqn: core.JaxprEqn, what: str = "") -> RunError:
    return RunError(f"this network cannot be written as ONNX: JAX's {eqn.primitive.name}{what} has no translation here")


def _shape(eqn: core.JaxprEqn) -> tuple[int, ...]:
    return type_of(eqn.outvars[0]).shape


def _is(value: Value, number: float) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 0 and value == number


def _max(builder: Builder, eqn: core.JaxprEqn, a: Value, b: Value) -> Value:
    if _is(a, 0):
        a, b = b, a
    if _is(b, 0):
        return builder.elementwise(_shape(eqn), "Relu", a)  # runtimes fuse it with a convolution
    return builder.elementwise(_shape(eqn), "Max", a, b)


def _min(builder: Builder, eqn: core.JaxprEqn, a: Value, b: Value) -> Value:
    if isinstance(a, np.ndarray):
        a, b = b, a
    if isinstance(a, Tensor) and isinstance(b, np.ndarray) and b.ndim == 0:
        name = builder.node("Clip", a.name, "", builder.constant(b))  # runtimes fuse it too
        return Tensor(name, a.shape, a.axes)
    return builder.elementwise(_shape(eqn), "Min", a, b)


def _integer_pow(builder: Builder, eqn: core.JaxprEqn, x: Value) -> Value:
    return builder.elementwise(_shape(eqn), "Pow", x, np.array(eqn.params["y"], np.float32))


def _erfc(builder: Builder, eqn: core.JaxprEqn, x: Value) -> Value:
    return builder.elementwise(_shape(eqn), "Sub", np.array(1, np.float32), builder.elementwise(_shape(eqn), "Erf", x))


def _rsqrt(builder: Builder, eqn: core.JaxprEqn, x: Value) -> Value:
    return builder.elementwise(_shape(eqn), "Reciprocal", builder.elementwise(_shape(eqn), "Sqrt", x))


def _round(builder: Builder, eqn: core.JaxprEqn, x: Value) -> Value:
    if eqn.params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise _unsupported(eqn, " away from zero")
    return builder.elementwise(_shape(eqn), "Round", x)


def _select_n(builder: Builder, eqn: core.JaxprEqn, which: Value, *cases: Value) -> Value:
    if len(cases) != 2:
        raise _unsupported(eqn, f" of {len(cases)} cases")
    return builder.elementwise(_shape(eqn), "Where", which, cases[1], cases[0])


def _convert_element_type(builder: Builder, eqn: core.JaxprEqn, x: Value) -> Value:
    new = np.dtype(eqn.params["new_dtype"])
    if type_of(eqn.invars[0]).dtype == new:
        return x
    return builder.elementwise(_shape(eqn), "Cast", x, to=builder.onnx.helper.np_dtype_to_tensor_dtype(new))


def _broadcast_in_dim(builder: Builder, eqn: core.JaxprEqn, x: Value) -> Value:
    shape, kept = _shape(eqn), eqn.params["broadcast_dimensions"]
    x = builder.reshape(x, [x.shape[kept.index(axis)] if axis in kept else 1 for axis in range(len(shape))])
    if x.shape == shape:
        return x
    times = [1 if size == target else target for size, target in zip(x.shape, shape, strict=True)]
    return builder.tensor(shape, "Expand", builder.plain(x), builder.sizes(times))


def _concatenate(builder: Builder, eqn: core.JaxprEqn, *parts: Value) -> Value:
    return builder.tensor(_shape(eqn), "Concat", *map(builder.plain, parts), axis=eqn.params["dimension"])


def _slice(builder: Builder, eqn: core.JaxprEqn, x: Tensor) -> Value:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    cut = [
        (start, limit, x.axes.index(axis), step)
        for axis, (start, limit, step) in enumerate(zip(starts, limits, steps, strict=True))
        if (start, limit, step) != (0, x.shape[axis], 1)
    ]
    columns = [builder.constant(np.array(column, np.int64)) for column in zip(*cut, strict=True)]
    return Tensor(builder.node("Slice", x.name, *columns), _shape(eqn), x.axes)


def _pad(builder: Builder, eqn: core.JaxprEqn, x: Tensor, fill: Value) -> Value:
    padding = [eqn.params["padding_config"][axis] for axis in x.axes]
    if any(interior for _, _, interior in padding):
        raise _unsupported(eqn, " between elements")
    pads = builder.constant(np.array(_pads([(low, high) for low, high, _ in padding]), np.int64))
    return Tensor(builder.node("Pad", x.name, pads, builder.plain(fill)), _shape(eqn), x.axes)


def _reduce(builder: Builder, eqn: core.JaxprEqn, x: Tensor) -> Value:
    gone = eqn.params["axes"]
    left = [axis for axis in range(len(x.shape)) if axis not in gone]
    positions = sorted(x.axes.index(axis) for axis in gone)
    if eqn.primitive.name == "reduce_sum":
        name = builder.node("ReduceSum", x.name, builder.constant(np.array(positions, np.int64)), keepdims=0)
    else:
        name = builder.node("ReduceMax", x.name, axes=positions, keepdims=0)
    return Tensor(name, _shape(eqn), tuple(left.index(axis) for axis in x.axes if axis in left))


def _dot_general(builder: Builder, eqn: core.JaxprEqn, a: Value, b: Value) -> Value:
    """Writes a MatMul of [*batch, free, contracted] and [*batch, contracted, free]."""
    (summed_a, summed_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    free_a, free_b = (
        tuple(axis for axis in range(len(x.shape)) if axis not in (*summed, *batch))
        for x, summed, batch in ((a, summed_a, batch_a), (b, summed_b, batch_b))
    )
    batch, rows, columns = (
        tuple(x.shape[axis] for axis in axes) for x, axes in ((a, batch_a), (a, free_a), (b, free_b))
    )
    summed = math.prod(a.shape[axis] for axis in summed_a)
    inner = rows if rows and not batch else (math.prod(rows),)  # MatMul broadcasts its second argument over rows
    left = builder.reshape(transposed(a, (*batch_a, *free_a, *summed_a)), (*batch, *inner, summed))
    right = builder.reshape(transposed(b, (*batch_b, *summed_b, *free_b)), (*batch, summed, math.prod(columns)))
    shape = (*batch, *inner, math.prod(columns))
    product = builder.tensor(shape, "MatMul", builder.plain(left), builder.plain(right))
    return builder.reshape(product, _shape(eqn))


def _conv(builder: Builder, eqn: core.JaxprEqn, image: Value, kernel: Value) -> Value:
    params = eqn.params
    dimensions = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(step != 1 for step in params["lhs_dilation"]):
        raise _unsupported(eqn, " with a dilated input or groups of the batch")
    name = builder.node(
        "Conv",
        builder.stored(image, dimensions.lhs_spec),
        builder.stored(kernel, dimensions.rhs_spec),
        group=params["feature_group_count"],
        strides=params["window_strides"],
        dilations=params["rhs_dilation"],
        pads=_pads(params["padding"]),
    )
    return Tensor(name, _shape(eqn), dimensions.out_spec)


def _max_pool(builder: Builder, eqn: core.JaxprEqn, image: Value) -> Value:
    """Writes a MaxPool of an NHWC image; ONNX also pads with -inf."""
    window, strides, padding, *dilations = (
        eqn.params[name]
        for name in ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    )
    if len(window) != 4 or (window[0], window[3]) != (1, 1) or any(step != 1 for steps in dilations for step in steps):
        raise _unsupported(eqn, f" over {list(window)}")
    sizes = {"kernel_shape": window[1:3], "strides": strides[1:3], "pads": _pads(padding[1:3])}
    return Tensor(builder.node("MaxPool", builder.stored(image, _NHWC), **sizes), _shape(eqn), _NHWC)


def _pads(padding: Sequence[tuple[int, int]]) -> list[int]:
    """Orders the padding as ONNX does: all the starts, then all the ends."""
    return [low for low, _ in padding] + [high for _, high in padding]


RULES: dict[str, Callable[..., Value]] = {
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": _concatenate,
    "conv_general_dilated": _conv,
    "convert_element_type": _convert_element_type,
    "copy": lambda builder, eqn, x: x,
    "dot_general": _dot_general,
    "erfc": _erfc,
    "integer_pow": _integer_pow,
    "max": _max,
    "min": _min,
    "pad": _pad,
    "reduce_max": _reduce,
    "reduce_sum": _reduce,
    "reduce_window_max": _max_pool,
    "reshape": lambda builder, eqn, x: builder.reshape(x, _shape(eqn)),
    "round": _round,
    "rsqrt": _rsqrt,
    "select_n": _select_n,
    "slice": _slice,
    "square": lambda builder, eqn, x: builder.elementwise(_shape(eqn), "Mul", x, x),
    "squeeze": lambda builder, eqn, x: builder.reshape(x, _shape(eqn)),
    "stop_gradient": lambda builder, eqn, x: x,
    "transpose": lambda builder, eqn, x: transposed(x, eqn.params["permutation"]),
}

"""Builds an ONNX graph: nodes in order, constants by name, tensors with a layout.

JAX's images are NHWC, ONNX's convolutions take NCHW. A `Tensor` may be stored with its axes in another order than JAX
has them. Elementwise operations keep the order that they find, so the graph has only few transposes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_distill.export.function import ONNX

BATCH = 1_000_003
"""Stands for the batch size in shapes. It is a prime beyond any width, so only the dimensions with the batch in them
are multiples of it. A network that asks for len(x) gets a number."""
INPUT = "pixels"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Describes the output of a node: its name in the graph and its shape in JAX.

    axes: the axes of `shape`, in the order in which they are stored.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]


Value = Tensor | np.ndarray
"""An array is a value that is known when the graph is written."""


class Builder:
    """Builds a graph node by node: `nodes` in the order of their execution, `constants` by name, each once.

    Raises:
      ConfigError: the extra is not installed.
    """

    def __init__(self) -> None:
        with ONNX:
            import onnx
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, value: Any) -> str:
        """Returns the name of an array in the graph; adds the array if it is new."""
        array = np.ascontiguousarray(value)
        key = (array.dtype.str, np.shape(value), array.tobytes())
        if key not in self._names:
            self._names[key] = f"constant{len(self.constants)}"
            self.constants[self._names[key]] = array.reshape(np.shape(value))
        return self._names[key]

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Appends a node, with the attributes of `onnx.helper.make_node`; returns the name of its output."""
        output = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [output], **attributes))
        return output

    def tensor(self, shape: Sequence[int], op: str, *inputs: str, **attributes: Any) -> Tensor:
        """Appends a node whose output has its axes in JAX's order."""
        return Tensor(self.node(op, *inputs, **attributes), tuple(shape), tuple(range(len(shape))))

    def stored(self, value: Value, axes: Sequence[int]) -> str:
        """Returns the name of a value with its axes in this order; transposes the value if needed."""
        if isinstance(value, np.ndarray):
            return self.constant(value.transpose(axes))
        if value.axes == tuple(axes):
            return value.name
        return self.node("Transpose", value.name, perm=[value.axes.index(axis) for axis in axes])

    def plain(self, value: Value) -> str:
        """Returns the name of a value with its axes in JAX's order."""
        return self.stored(value, range(len(value.shape)))

    def elementwise(self, shape: Sequence[int], op: str, *values: Value, **attributes: Any) -> Tensor:
        """Appends an elementwise node, which keeps the order of the axes of its largest input.

        Each input has as many axes as `shape`, or none.
        """
        tensors = [value for value in values if isinstance(value, Tensor)]
        axes = max(tensors, key=lambda tensor: math.prod(tensor.shape)).axes
        names = [self.stored(value, axes if len(value.shape) else ()) for value in values]
        return Tensor(self.node(op, *names, **attributes), tuple(shape), axes)

    def reshape(self, value: Value, shape: Sequence[int]) -> Value:
        """Gives a value another shape."""
        if isinstance(value, np.ndarray):
            return value.reshape(shape)
        if value.shape == tuple(shape):
            return value
        sizes = np.array([-1 if has_batch([size]) else size for size in shape], np.int64)
        return self.tensor(shape, "Reshape", self.plain(value), self.constant(sizes))

    def sizes(self, shape: Sequence[int]) -> str:
        """Returns the name of a shape, int64 [len(shape)], with the batch size of the input in place of `BATCH`."""
        if not has_batch(shape):
            return self.constant(np.array(shape, np.int64))
        batch = self.node("Shape", INPUT, start=0, end=1)
        sizes = [batch if size == BATCH else self.constant(np.array([size], np.int64)) for size in shape]
        return self.node("Concat", *sizes, axis=0)


def transposed(value: Value, permutation: Sequence[int]) -> Value:
    """Permutes the axes of a value; of a tensor it only notes the new order."""
    if isinstance(value, np.ndarray):
        return value.transpose(permutation)
    shape = tuple(value.shape[axis] for axis in permutation)
    return Tensor(value.name, shape, tuple(tuple(permutation).index(axis) for axis in value.axes))


def has_batch(shape: Sequence[int]) -> bool:
    """Returns True if the batch is in one of these dimensions."""
    return any(size > 0 and size % BATCH == 0 for size in shape)

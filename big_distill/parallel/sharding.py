"""The mesh, and where arrays live on it: batches are split over all of it, states and teachers over 'fsdp'."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_distill.state import Model, Outputs

MIN_SIZE = 1 << 16
"""Elements from which on an array is split: those that are smaller are 1.3 % of an R50x1, and 111 of its 153 arrays."""


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices of all processes, or those given: 'fsdp' neighbours, among which states are split, and 'data' groups.

    In order of the processes, not of the torus as `jax.make_mesh` has them: a process makes one contiguous part of the
    global batch, and mixup's partners must not depend on how a slice is wired.
    """
    in_order = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order).reshape(-1, fsdp), ("data", "fsdp"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_devices(mesh: Mesh, batch: Mapping[str, np.ndarray], axis: int = 0) -> dict[str, Any]:
    """Global arrays from this process's rows: split over all devices along the axis of the examples.

    Arrays without such an axis are replicated. A chunk, [K, B, ...], has it at 1.
    """
    return {
        name: jax.make_array_from_process_local_data(_of_batch(mesh, np.ndim(value), axis), np.asarray(value))
        for name, value in batch.items()
    }


def _of_batch(mesh: Mesh, ndim: int, axis: int) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, mesh.axis_names)) if ndim > axis else replicated(mesh)


def on_own_examples(mesh: Mesh, make_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """`make_fn(whole, batch)`, computed by every device for its own examples; `whole` is replicated."""

    def apply(whole: Any, batch: Any) -> Any:
        def specs(tree: Any) -> Any:
            return jax.tree.map(lambda x: PartitionSpec(mesh.axis_names) if np.ndim(x) else PartitionSpec(), tree)

        out_specs = specs(jax.eval_shape(make_fn, whole, batch))
        return jax.shard_map(make_fn, mesh=mesh, in_specs=(PartitionSpec(), specs(batch)), out_specs=out_specs)(
            whole, batch
        )

    return apply


def rule(mesh: Mesh, tree: Any) -> Any:
    """The shardings of a tree of arrays, or of shapes: each is split over 'fsdp', along its largest axis that can be.

    An array of fewer than `MIN_SIZE` elements, or without such an axis, is whole on every device.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _split(x.shape, mesh.shape["fsdp"])), tree)


def _split(shape: tuple[int, ...], num_parts: int) -> PartitionSpec:
    fitting = [axis for axis, size in enumerate(shape) if size % num_parts == 0]
    if num_parts == 1 or math.prod(shape) < MIN_SIZE or not fitting:
        return PartitionSpec()
    axis = max(fitting, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*[None] * axis, "fsdp")


def gathered(mesh: Mesh, variables: Any) -> Any:
    """Variables that are split by `rule`, whole on every device; their gradients are split again.

    By itself XLA also splits activations by their channels, and sends them around.
    """
    if mesh.shape["fsdp"] == 1:
        return variables

    @jax.custom_vjp
    def whole(variables: Any) -> Any:
        return jax.lax.with_sharding_constraint(variables, replicated(mesh))

    def split(_: None, grads: Any) -> tuple[Any]:
        grads = jax.lax.with_sharding_constraint(grads, replicated(mesh))  # reduced, before the products see the split
        return (jax.lax.with_sharding_constraint(grads, rule(mesh, grads)),)

    whole.defvjp(lambda variables: (whole(variables), None), split)
    return whole(variables)


@functools.cache
def gathering(mesh: Mesh, model: Model) -> Model:
    """The same network of variables that are split by `rule`; the same object where nothing is split."""
    if mesh.shape["fsdp"] == 1:
        return model

    def apply(variables: Any, image: jax.Array, **kwargs: Any) -> tuple[Outputs, Any]:
        return model.apply(gathered(mesh, variables), image, **kwargs)

    return Model(model.init, apply)


def put(tree: Any, shardings: Any) -> Any:
    """A tree of host arrays, the same in every process, on the devices; what is there already stays where it is.

    Unlike `jax.device_put` it does not send every array around to see that all processes have the same one.

    Args:
      tree: the arrays.
      shardings: `rule`'s of it, or one for all.
    """

    def leaf(x: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        array = np.asarray(x)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(leaf, tree, jax.tree.broadcast(shardings, tree))


def to_host(x: Any) -> np.ndarray:
    """The whole of an array, of which this process may hold a part: then every process has to ask."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def place(abstract: Any, shardings: Any) -> Any:
    """A tree of ShapeDtypeStruct, each with its sharding: what a checkpoint is restored onto."""

    def leaf(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, abstract, jax.tree.broadcast(shardings, abstract))


def place_batch(
    mesh: Mesh, abstract: Mapping[str, jax.ShapeDtypeStruct], axis: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch, or a chunk, of ShapeDtypeStruct with the shardings of `to_devices`."""
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_of_batch(mesh, len(x.shape), axis))
        for name, x in abstract.items()
    }

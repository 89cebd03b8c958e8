"""Where arrays live: one mesh, states replicated, batches split along their first axis."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_distill.errors import RunError


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """All devices of all processes, or those given, along one axis, 'data'.

    In order of the processes, not of the torus as `jax.make_mesh` has them: a process makes one contiguous part of the
    global batch, and mixup's partners must not depend on how a slice is wired.
    """
    in_order = sorted(devices or jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(in_order), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def to_devices(mesh: Mesh, batch: Mapping[str, np.ndarray], axis: int = 0) -> dict[str, Any]:
    """Global arrays from this process's rows: split over the devices along the axis of the examples.

    What has no such axis is replicated. Of a chunk, [K, B, ...], the axis is 1.
    """
    return {
        name: jax.make_array_from_process_local_data(_of_batch(mesh, np.ndim(value), axis), np.asarray(value))
        for name, value in batch.items()
    }


def _of_batch(mesh: Mesh, ndim: int, axis: int) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data")) if ndim > axis else replicated(mesh)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """A tree of host arrays on every device.

    Unlike `jax.device_put` it does not send every array around to see that all processes have the same one.
    """

    def put(x: Any) -> jax.Array:
        array = np.asarray(x)
        return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])

    return jax.tree.map(put, tree)


def from_first_process(value: Any) -> Any:
    """The JSON-ready value that process 0 has, in every process: what one disk says must not divide them."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(data))] = data[:size]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())


def on_first_process(function: Callable[[], Any]) -> Any:
    """What a function returns in process 0, JSON-ready, in every process.

    Raises:
      RunError: in every process, if it was raised there, or if a file could not be read or written.
    """
    value, refusal = None, None
    if jax.process_index() == 0:
        try:
            value = function()
        except RunError as error:
            refusal = str(error)
        except OSError as error:
            refusal = f"{error.filename}: {error.strerror}"
    value, refusal = from_first_process([value, refusal])
    if refusal is not None:
        raise RunError(refusal)
    return value


def is_peer_lost(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, is that of a process that waits for another in vain."""
    if jax.process_count() == 1:
        return False
    signs = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "heartbeat", "Barrier failed")
    causes = (error, error.__cause__, error.__context__)
    texts = [str(cause) for cause in causes if isinstance(cause, RuntimeError | TimeoutError)]
    return any(sign in text for text in texts for sign in signs)


def place(mesh: Mesh, abstract: Any) -> Any:
    """A tree of ShapeDtypeStruct, each with its sharding: what a checkpoint is restored onto."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), abstract)


def place_batch(
    mesh: Mesh, abstract: Mapping[str, jax.ShapeDtypeStruct], axis: int = 0
) -> dict[str, jax.ShapeDtypeStruct]:
    """The same of a batch, or of a chunk, as `to_devices` has it."""
    return {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_of_batch(mesh, len(x.shape), axis))
        for name, x in abstract.items()
    }

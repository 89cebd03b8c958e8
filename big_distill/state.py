"""The types that flow through a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Params = Any  # a nested dict of float32 arrays
Batch = Mapping[str, jax.Array]
"""A batch as it travels to the device:

* `step` int32 []: the step these draws belong to.
* `pixels` uint8 [B, H, W, C]: the student's crop.
* `teacher_pixels` uint8 [B, H, W, C]: the teacher's own crop, only under the regimes `fixed` and `independent`.
* `label` int32 [B], only from a labelled source.
* `lam` float32 []: mixup's lambda, in [0.5, 1]; training only.
* `mask` bool [B]: False for padding; evaluation only.
* of a `Resident` split, instead of pixels and label: `id` int32 [B], which examples; `box` int32 [B, 4], the crop's
  top, left, height and width, absent for central views; `flip` bool [B], if there are flips; and `teacher_id`,
  `teacher_box`, `teacher_flip` under those two regimes.
"""


@struct.dataclass
class Resident:
    """A decoded training split that lives on every device; what no branch reads is None.

    Images are rows, because a TPU copies all of an array of more axes before it picks some.

    pixels: uint8 [N, H * W * C], padded with zeros below and to the right.
    central: uint8 [N, S * S * C], the constant views.
    label: int32 [N].
    shape: (H, W, C).
    """

    pixels: Any = None
    central: Any = None
    label: Any = None
    shape: tuple[int, int, int] = struct.field(pytree_node=False, default=(0, 0, 0))


@struct.dataclass
class Representation:
    """How a parameter becomes what the network computes with, in this order; `materialize` reads it.

    codes: uint16, of shared weights: 0 is zero, i + 1 the i-th of the trained values; None: they are not shared.
    mask: bool, False where pruned; None: nowhere.
    top: the largest of the integers that it is rounded to, times a scale for each of the last axis; 0: no integers.
    half: whether it is rounded to bfloat16.
    """

    codes: jax.Array | None = None
    mask: jax.Array | None = None
    top: int = struct.field(pytree_node=False, default=0)
    half: bool = struct.field(pytree_node=False, default=False)


Aux = dict[str, Representation]
"""How some of a student's parameters are represented, by path; `compress` writes it."""


@struct.dataclass
class Outputs:
    """The outputs of a network for a batch of images. A part is None where the network has none, or nobody reads it.

    logits: float32 [B, K].
    embedding: [B, D], what the head reads, before dropout.
    maps: one map [B, h, w, C] a stage, the last one before pooling; of a ViT the patch tokens in their grid, after the
      last normalisation.
    token_logits: float32 [B, K], of a second head, as that of DeiT's distillation token.
    """

    logits: Any = None
    embedding: Any = None
    maps: tuple[Any, ...] | None = None
    token_logits: Any = None

    def only(self, parts: Collection[str]) -> Outputs:
        """The named parts alone. XLA does not compute the others, if nothing else reads them."""
        return Outputs(**{name: getattr(self, name) for name in OUTPUTS if name in parts})

    def in_order(self, order: tuple[int, ...]) -> Outputs:
        """The same with other classes: the i-th is the one that was `order[i]`."""

        def chosen(logits: jax.Array | None) -> jax.Array | None:
            return None if logits is None else logits[:, jnp.array(order)]

        return dataclasses.replace(self, logits=chosen(self.logits), token_logits=chosen(self.token_logits))


OUTPUTS = tuple(field.name for field in dataclasses.fields(Outputs))


@struct.dataclass
class Targets:
    """The targets of students on a batch of views: as many of them as some objective reads.

    labels: float32 [B, K], mixed as the views are; None from an unlabelled source.
    logits: float32 [B, K], the mean of the teachers'; None without a teacher, or with one that has no classes.
    teachers: the other outputs of each teacher, in the teachers' order.
    """

    labels: Any = None
    logits: Any = None
    teachers: tuple[Outputs, ...] = ()


@dataclasses.dataclass(frozen=True)
class Model:
    """A network as two pure functions; nothing outside `models/` knows more of it.

    init: `(rng, image [B, H, W, C] float32) -> {'params': ..., 'batch_stats': ...}` (batch_stats only if the network
      has any).
    apply: `(variables, image, *, train, rng=None) -> (Outputs, batch_stats)`. A user's may return logits [B, K] in the
      place of `Outputs`: `models.build` adapts it.
    """

    init: Callable[..., dict[str, Any]]
    apply: Callable[..., tuple[Outputs, Any]]


@dataclasses.dataclass(frozen=True)
class Card:
    """The input that a network's weights expect.

    image_size: side of the square input in pixels.
    mean, std: per channel, on pixels scaled to [0, 1]; the default makes the value range [-1, 1].
    class_names: in the order of the logits; may be empty.
    """

    image_size: int
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    class_names: tuple[str, ...] = ()


@struct.dataclass
class Teacher:
    """One or several frozen networks: an argument of the step, never donated, never in a checkpoint.

    orders: for each network which of its logits is which class, None where they are in order.
    mean: how several become one, see `objectives.mean_teacher`.
    """

    variables: tuple[Any, ...]
    models: tuple[Model, ...] = struct.field(pytree_node=False)
    cards: tuple[Card, ...] = struct.field(pytree_node=False)
    orders: tuple[tuple[int, ...] | None, ...] = struct.field(pytree_node=False)
    mean: str = struct.field(pytree_node=False, default="logits")

    def one(self, index: int) -> Teacher:
        """One of the networks, as a teacher of its own."""
        one = slice(index, index + 1)
        return Teacher(self.variables[one], self.models[one], self.cards[one], self.orders[one])


@struct.dataclass
class TrainState:
    """All that a step changes.

    step: int32 [], the number of updates applied, or skipped.
    params: the trainable floats.
    aux: how they become kernels, {} if they are.
    batch_stats: running statistics of normalisation layers, {} without any.
    opt_state: optax's.
    skipped: int32 [], how many of the updates were left out because they were not finite.
    objective: `params`, `stats` and `opt_state` of the objective, {} if it has no variables.
    """

    step: jax.Array
    params: Params
    aux: Aux
    batch_stats: Any
    opt_state: Any
    skipped: jax.Array
    objective: dict[str, Any] = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The student itself, as `Model.apply` takes it."""
        return {"params": materialize(self.params, self.aux), "batch_stats": self.batch_stats}


def materialize(params: Params, aux: Aux) -> Params:
    """The dense parameters, which gradients flow through to the represented ones.

    Args:
      params: what is trained.
      aux: by path, how what is not simply itself is represented.
    """

    def leaf(path: jax.tree_util.KeyPath, value: jax.Array) -> jax.Array:
        how = aux.get(path_name(path))
        if how is None:
            return value
        if how.codes is not None:
            value = jnp.concatenate([jnp.zeros(1, value.dtype), value])[how.codes]
        if how.mask is not None:
            value = jnp.where(how.mask, value, 0)
        if how.top:
            scale = jnp.maximum(jnp.abs(value).max(tuple(range(value.ndim - 1))), 1e-30) / jnp.float32(how.top)
            value = straight_through(jnp.round(value / scale) * scale, value)
        if how.half:
            value = straight_through(value.astype(jnp.bfloat16).astype(value.dtype), value)
        return value

    return jax.tree_util.tree_map_with_path(leaf, params) if aux else params


def straight_through(rounded: jax.Array, value: jax.Array) -> jax.Array:
    """`rounded`, to the bit, with the gradient of `value` (Bengio et al. 2013, arXiv 1308.3432)."""
    return jax.lax.stop_gradient(rounded) + (value - jax.lax.stop_gradient(value))


def path_name(path: jax.tree_util.KeyPath) -> str:
    """block1/unit01/conv1/kernel"""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their `path_name`, in its order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

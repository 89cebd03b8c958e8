"""Defines the types that flow through a step, and makes dense parameters of represented ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

Params = Any  # a nested dict of float32 arrays
Batch = Mapping[str, jax.Array]
"""A batch has these entries when it travels to the device:

* `step` int32 []: the step that the draws belong to.
* `pixels` uint8 [B, H, W, C]: the student's crop.
* `teacher_pixels` uint8 [B, H, W, C]: the teacher's own crop, only under the regimes `fixed` and `independent`.
* `label` int32 [B], only from a labelled source.
* `lam` float32 []: mixup's lambda, in [0.5, 1]; training only.
* `mask` bool [B]: False for padding; evaluation only.
* a `Resident` split has, instead of pixels and label: `id` int32 [B], the examples; `box` int32 [B, 4], the crop's top,
  left, height and width, absent for central views; `flip` bool [B], if there are flips; and `teacher_id`,
  `teacher_box`, `teacher_flip` under those two regimes.
"""


@struct.dataclass
class Resident:
    """Holds a decoded training split on every device. A field that no branch reads is None.

    Images are rows: of an array with more axes a TPU would copy everything before it picks some images.

    pixels: uint8 [N, H * W * C], padded with zeros below and to the right.
    sizes: int32 [N, 2], height and width of each image; None if no crop reaches beyond it.
    central: uint8 [N, S * S * C], the constant views.
    label: int32 [N].
    shape: (H, W, C).
    """

    pixels: Any = None
    sizes: Any = None
    central: Any = None
    label: Any = None
    shape: tuple[int, int, int] = struct.field(pytree_node=False, default=(0, 0, 0))


@struct.dataclass
class Representation:
    """Describes how `materialize` makes a dense parameter of a trained one, in this order.

    codes: uint16, of shared weights: 0 is zero, i + 1 the i-th of the trained values; None if they are not shared.
    mask: bool, False where pruned; None if nothing is.
    top: largest of the integers that it is rounded to, times a scale for each entry of the last axis; 0 for floats.
    half: True if it is rounded to bfloat16.
    """

    codes: jax.Array | None = None
    mask: jax.Array | None = None
    top: int = struct.field(pytree_node=False, default=0)
    half: bool = struct.field(pytree_node=False, default=False)


Aux = dict[str, Representation]
"""Maps paths of a student's parameters to their representations, if they have one; `compress` writes it."""


@struct.dataclass
class Outputs:
    """Holds the outputs of a network for a batch of images. A part is None if the network lacks it or nobody reads it.

    logits: float32 [B, K].
    embedding: [B, D], the input of the head, before dropout.
    maps: one map [B, h, w, C] a stage, the last one before pooling; for a ViT the patch tokens in their grid, after the
      last normalisation.
    token_logits: float32 [B, K], logits of a second head, such as that of DeiT's distillation token.
    """

    logits: Any = None
    embedding: Any = None
    maps: tuple[Any, ...] | None = None
    token_logits: Any = None

    def only(self, parts: Collection[str]) -> Outputs:
        """Returns the named parts alone. XLA does not compute the others, if nothing else reads them."""
        return Outputs(**{name: getattr(self, name) for name in OUTPUTS if name in parts})

    def in_order(self, order: tuple[int, ...]) -> Outputs:
        """Reorders the classes: the i-th is the one that was `order[i]`."""

        def chosen(logits: jax.Array | None) -> jax.Array | None:
            return None if logits is None else logits[:, jnp.array(order)]

        return dataclasses.replace(self, logits=chosen(self.logits), token_logits=chosen(self.token_logits))


OUTPUTS = tuple(field.name for field in dataclasses.fields(Outputs))


@struct.dataclass
class Targets:
    """Holds the targets of students on a batch of views: those that some objective reads.

    labels: float32 [B, K], mixed as the views are; None from an unlabelled source.
    logits: float32 [B, K], the mean of the teachers'; None without a teacher, or with one that has no classes.
    teachers: the other outputs of each teacher, in the teachers' order.
    """

    labels: Any = None
    logits: Any = None
    teachers: tuple[Outputs, ...] = ()


@dataclasses.dataclass(frozen=True)
class Model:
    """Holds a network as two pure functions. Code outside `models/` knows no more of it.

    init: `(rng, image [B, H, W, C] float32) -> {'params': ..., 'batch_stats': ...}` (batch_stats only if the network
      has any).
    apply: `(variables, image, *, train, rng=None) -> (Outputs, batch_stats)`. A user's may return logits [B, K] in
      place of `Outputs`: `models.build` adapts it.
    """

    init: Callable[..., dict[str, Any]]
    apply: Callable[..., tuple[Outputs, Any]]


@dataclasses.dataclass(frozen=True)
class Card:
    """Describes the input that a network's weights expect.

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
    """Holds one or several frozen networks: an argument of the step, never donated, never in a checkpoint.

    orders: for each network the index of each class among its logits; None where they are in order.
    mean: kind of mean over several, see `objectives.mean_teacher`.
    """

    variables: tuple[Any, ...]
    models: tuple[Model, ...] = struct.field(pytree_node=False)
    cards: tuple[Card, ...] = struct.field(pytree_node=False)
    orders: tuple[tuple[int, ...] | None, ...] = struct.field(pytree_node=False)
    mean: str = struct.field(pytree_node=False, default="logits")

    def one(self, index: int) -> Teacher:
        """Returns one of the networks as a teacher of its own."""
        one = slice(index, index + 1)
        return Teacher(self.variables[one], self.models[one], self.cards[one], self.orders[one])


@struct.dataclass
class TrainState:
    """Holds all that a step changes.

    step: int32 [], the number of updates applied, or skipped.
    params: the trainable floats.
    aux: representations that turn them into kernels; {} if they are kernels.
    batch_stats: running statistics of normalisation layers, {} without any.
    opt_state: state of optax.
    skipped: int32 [], the number of updates left out because they were not finite.
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
        """Returns the student's dense variables, as `Model.apply` takes them."""
        return {"params": materialize(self.params, self.aux), "batch_stats": self.batch_stats}


def materialize(params: Params, aux: Aux) -> Params:
    """Computes the dense parameters. Gradients flow through them to the represented ones.

    Args:
      params: the trained parameters.
      aux: representations, by path, of the parameters that have one.
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
    """Returns `rounded`, to the bit, with the gradient of `value` (Bengio et al. 2013, arXiv 1308.3432)."""
    return jax.lax.stop_gradient(rounded) + (value - jax.lax.stop_gradient(value))


def path_name(path: jax.tree_util.KeyPath) -> str:
    """Names a leaf of a tree: block1/unit01/conv1/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(tree: Any) -> dict[str, Any]:
    """Maps each `path_name` of a tree to its leaf, in the tree's order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}

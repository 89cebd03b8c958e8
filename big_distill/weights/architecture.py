"""What a network is: its architecture, and the architecture with its weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill import models
from big_distill.config import Config, ModelConfig
from big_distill.errors import RunError
from big_distill.models.families import BIT_BLOCKS
from big_distill.state import Card, Model, path_name
from big_distill.weights.variables import Variables

Arrays = dict[str, np.ndarray]
"""Variables by path: params/fc1/kernel."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What rebuilds a network: its config, its outputs and its input.

    channels: of an image.
    resize: an image's shorter side, before a square of `view_size` is cut from its middle.
    card: what the network expects; where its image_size is smaller, the square is resized to it.
    view_size: 0 for card.image_size.
    """

    model: ModelConfig
    num_classes: int
    channels: int
    resize: int
    card: Card
    view_size: int = 0

    def build(self, dtype: str, *, folded: bool = False) -> Model:
        """The network as pure functions; `folded` as in `models.build`."""
        return models.build(self.model, self.num_classes, dtype, folded)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Of one image, [1, S, S, C]."""
        return (1, self.card.image_size, self.card.image_size, self.channels)

    def abstract_variables(self, *, folded: bool = False) -> Any:
        """The tree of ShapeDtypeStruct that its weights must fill; `folded`: that `models.fold` makes of them."""
        image = jax.ShapeDtypeStruct(self.input_shape, jnp.float32)
        return jax.eval_shape(self.build("float32", folded=folded).init, jax.random.key(0), image)


@dataclasses.dataclass(frozen=True)
class Network:
    """An architecture with its weights; `source` is what the user calls the file that they are from."""

    architecture: Architecture
    variables: Variables
    source: str = ""


def architecture_of(config: Config, class_names: tuple[str, ...], begun_from: Network | None) -> Architecture:
    """The student of a resolved config.

    Args:
      config: resolved.
      class_names: of the data.
      begun_from: of `transition.begin_from`: its form, and its input's normalisation, are the student's.

    Raises:
      RunError: a network of other classes.
    """
    view, model = config.view, config.student
    card = Card(image_size=view.size_for_student, class_names=class_names)
    if begun_from is not None:
        model, before = begun_from.architecture.model, begun_from.architecture.card
        differ = [(a, b) for a, b in zip(before.class_names, class_names, strict=False) if a != b]
        if differ and len(before.class_names) == len(class_names) and not config.init_fresh:
            raise RunError(
                f"{begun_from.source} has other classes, or in another order ({differ[0][0]!r} where the data have "
                f"{differ[0][1]!r}): config.init_fresh='head/.*' starts the head anew"
            )
        card = dataclasses.replace(card, mean=before.mean, std=before.std)
    return Architecture(model, config.num_classes, view.channels, view.resize, card, view.image_size)


def check_same(theirs: ModelConfig, ours: ModelConfig, subject: str, name: str) -> None:
    """Raises RunError if two configs describe different networks; a BiT's depth is its blocks."""
    blocks = [model.blocks or BIT_BLOCKS.get(model.depth, ()) for model in (theirs, ours)]
    for field in (f.name for f in dataclasses.fields(ModelConfig)):
        their, our = getattr(theirs, field), getattr(ours, field)
        if their != our and not (field in ("depth", "blocks") and blocks[0] == blocks[1]):
            raise RunError(f"{subject}: its {field} is {their!r}, {name}.{field}={our!r}")


def check_shapes(network: Network) -> None:
    """Raises RunError unless a network's weights are those of its architecture, which is not the one it came with."""
    shapes = {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(network.variables)}
    size = network.architecture.card.image_size
    for key, wanted in jax.tree_util.tree_leaves_with_path(network.architecture.abstract_variables()):
        if shapes[path_name(key)] != wanted.shape:
            raise RunError(
                f"{network.source} is not for images of {size} px: its {path_name(key)} has shape "
                f"{shapes[path_name(key)]}, at this size it would be {wanted.shape}"
            )


def arrays_of(network: Network) -> Arrays:
    """Its variables by path: params/fc1/kernel."""
    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def with_input_ranges(network: Network, bits: int) -> Network:
    """The network with inputs of so many bits, or of floats for 0; ranges that are not known yet are zero."""
    return rebuilt(network, arrays_of(network), activation_bits=bits)


def rebuilt(network: Network, arrays: Arrays, **fields: Any) -> Network:
    """The network with these variables, and with other fields of its ModelConfig.

    Ranges of inputs that are not among the arrays are zero, those that have no place are left out; all else must fit.
    """
    model = dataclasses.replace(network.architecture.model, **fields)
    architecture = dataclasses.replace(network.architecture, model=model)
    left = {name: array for name, array in arrays.items() if not name.endswith(models.INPUT_RANGE)}

    def leaf(path: jax.tree_util.KeyPath, wanted: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path_name(path)
        if name.endswith(models.INPUT_RANGE):
            return arrays.get(name, np.zeros(wanted.shape, np.float32))
        array = left.pop(name)
        assert array.shape == wanted.shape, f"{name} has shape {array.shape}, not {wanted.shape}"
        return array

    variables = jax.tree_util.tree_map_with_path(leaf, architecture.abstract_variables())
    assert not left, f"no place for {', '.join(left)}"
    return Network(architecture, variables, network.source)

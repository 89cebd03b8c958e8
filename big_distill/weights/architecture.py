"""Networks: the architecture of one, and the architecture with its weights, which are counted, hashed and merged."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import re
from typing import Any, Generic, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from big_distill import models
from big_distill.config import Config, ModelConfig
from big_distill.errors import RunError
from big_distill.parallel import sharding
from big_distill.state import Card, Model, by_path, path_name

Variables = dict[str, Any]
"""{"params": ..., "batch_stats": ...}, the latter only if the network has any."""
Arrays = dict[str, np.ndarray]
"""Variables by path: params/fc1/kernel."""


class Architecture(abc.ABC):
    """An architecture rebuilds a network: how it computes, its outputs and its input. A `Network` adds the weights.

    One that is written here is a frozen dataclass of these fields, and of whatever it is made of.

    num_classes: K, the number of logits; 0 for a network without a head.
    channels: of an image.
    resize: an image's shorter side, before a square of `view_size` is cut from its middle.
    card: what the network expects; where its image_size is smaller, the square is resized to it.
    view_size: 0 for card.image_size.
    """

    num_classes: int
    channels: int
    resize: int
    card: Card
    view_size: int

    @abc.abstractmethod
    def build(self, dtype: str, *, folded: bool = False) -> Model:
        """The network as pure functions, its activations in `dtype`; `folded`: of the variables that `fold` makes."""

    @abc.abstractmethod
    def fold(self, variables: Variables) -> Variables:
        """The variables of the folded network: what does not depend on the input is computed, in float32."""

    @property
    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """The facts that make it this network, JSON-ready, without card and weights; `name` is what people call it."""

    def with_card(self, card: Card) -> Self:
        """The same network, of which another card is true."""
        return dataclasses.replace(self, card=card)  # type: ignore[type-var]

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """The shape of one image, [1, S, S, C]."""
        return (1, self.card.image_size, self.card.image_size, self.channels)

    def abstract_variables(self, *, folded: bool = False) -> Any:
        """The tree of ShapeDtypeStruct that its weights must fill; `folded`: that `fold` makes of them."""
        image = jax.ShapeDtypeStruct(self.input_shape, jnp.float32)
        return jax.eval_shape(self.build("float32", folded=folded).init, jax.random.key(0), image)


@dataclasses.dataclass(frozen=True)
class ConfigArchitecture(Architecture):
    """The architecture that a `ModelConfig` describes: a family's, or the user's own code."""

    model: ModelConfig
    num_classes: int
    channels: int
    resize: int
    card: Card
    view_size: int = 0

    def build(self, dtype: str, *, folded: bool = False) -> Model:
        """The network as pure functions; the same arguments give the same object."""
        return models.build(self.model, self.num_classes, dtype, folded)

    def fold(self, variables: Variables) -> Variables:
        """The variables of the folded network, as `models.fold` makes them."""
        return models.fold(self.model, variables)

    @property
    def identity(self) -> dict[str, Any]:
        """The fields of its config. `options`, which older files do not have, is there if it is set."""
        fields = dataclasses.asdict(self.model)
        return {name: value for name, value in fields.items() if value or name != "options"}

    def to_json(self) -> dict[str, Any]:
        """Makes the JSON that a card holds of it; `card.from_json` is the inverse."""
        return {**dataclasses.asdict(self), "model": self.identity}


_Architecture = TypeVar("_Architecture", bound=Architecture, covariant=True)


@dataclasses.dataclass(frozen=True)
class Network(Generic[_Architecture]):
    """An architecture with its weights; `source` is what the user calls the file that they are from."""

    architecture: _Architecture
    variables: Variables
    source: str = ""


def architecture_of(config: Config, class_names: tuple[str, ...], begun_from: Network | None) -> ConfigArchitecture:
    """The student of a resolved config.

    Args:
      config: resolved.
      class_names: of the data.
      begun_from: of `initial.reshaped`: its form, and its input's normalisation, are the student's.

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
    return ConfigArchitecture(model, config.num_classes, view.channels, view.resize, card, view.image_size)


def check_same(theirs: ModelConfig, ours: ModelConfig, subject: str, name: str) -> None:
    """Raises RunError if two configs describe different networks."""
    theirs, ours = (models.family_of(model).canonical(model) for model in (theirs, ours))
    for field in (f.name for f in dataclasses.fields(ModelConfig)):
        their, our = getattr(theirs, field), getattr(ours, field)
        if their != our:
            raise RunError(f"{subject}: its {field} is {their!r}, {name}.{field}={our!r}")


def check_shapes(network: Network) -> None:
    """Raises RunError unless a network's weights are those of its architecture, which is not the one it came with."""
    arrays, size = by_path(network.variables), network.architecture.card.image_size
    for name, expected in by_path(network.architecture.abstract_variables()).items():
        if arrays[name].shape != expected.shape:
            raise RunError(
                f"{network.source} is not for images of {size} px: its {name} has shape {arrays[name].shape}, "
                f"at this size it would be {expected.shape}"
            )


def arrays_of(network: Network) -> Arrays:
    """The variables of a network by path: params/fc1/kernel."""
    return {name: np.asarray(leaf) for name, leaf in by_path(network.variables).items()}


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


def num_params(params: Any) -> int:
    """How many numbers a tree of parameters holds."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def num_nonzero(params: Any) -> int:
    """How many of them are not zero."""
    return sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(params))


def sha256(params: Any) -> str:
    """Hash of every parameter's path, dtype, shape and bytes, in order of the paths; every process has to ask."""
    digest = hashlib.sha256()
    for name, value in sorted(by_path(params).items()):
        # A jax.Array keeps its first host copy: of a fresh one this hashes what the device holds now.
        array = np.ascontiguousarray(sharding.to_host(jnp.copy(value) if isinstance(value, jax.Array) else value))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def merge(variables: Variables, given: Network, fresh: str | None) -> tuple[Variables, str]:
    """Takes every leaf from `given`, except those whose path below the collection (head/kernel) matches `fresh`.

    Returns:
      (the merged variables, how many leaves were taken, stayed or found no place: a line for the log).

    Raises:
      RunError: a leaf that is neither there in this shape nor matched by `fresh`.
    """
    trained = by_path(given.variables)
    loaded: list[str] = []
    kept: list[str] = []

    def leaf(key: jax.tree_util.KeyPath, new: Any) -> Any:
        name = path_name(key)
        if fresh and re.fullmatch(fresh, name.partition("/")[2]):
            kept.append(name)
            return new
        shape = trained[name].shape if name in trained else "missing"
        if shape != new.shape:
            raise RunError(
                f"{given.source} does not fit this student: {name} is {shape} there and {new.shape} here; "
                "config.init_fresh names what is to start anew, such as head/.*"
            )
        loaded.append(name)
        return trained[name]

    def listed(names: list[str]) -> str:
        return f" ({', '.join(names[:4])}{', ...' * (len(names) > 4)})" if names else ""

    merged = jax.tree_util.tree_map_with_path(leaf, variables)
    if fresh and not kept:
        raise RunError(f"config.init_fresh={fresh!r} matches no parameter, e.g. not {loaded[0].partition('/')[2]}")
    unused = sorted(trained.keys() - set(loaded))
    return merged, (
        f"{len(loaded)} parameters loaded, {len(kept)} new{listed(kept)}, {len(unused)} unused{listed(unused)}"
    )

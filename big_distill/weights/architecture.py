"""Describes a network: its architecture, and the architecture with its weights. Counts, hashes and merges weights."""

from __future__ import annotations

import abc
import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Generic, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from big_distill import models
from big_distill.config import BIT_DEPTH, FITS, Config, ModelConfig
from big_distill.errors import RunError
from big_distill.parallel import sharding
from big_distill.state import Card, Model, by_path, path_name

Variables = dict[str, Any]
"""{"params": ..., "batch_stats": ...}; the second key is there only if the network has such statistics."""
Arrays = dict[str, np.ndarray]
"""Variables by path, such as params/fc1/kernel."""


class Architecture(abc.ABC):
    """Rebuilds a network: it says how the network computes, and what its outputs and its input are.

    A `Network` adds the weights. A subclass is a frozen dataclass with these fields, and with those that describe the
    computation.

    num_classes: K, the number of logits; 0 for a network without a head.
    channels: number of channels of an image.
    resize: an image's side in pixels, before a square of `view_size` is cut from its middle.
    card: what the network expects of its input; the square is resized to card.image_size if that is smaller.
    view_size: side of the square in pixels; 0 means card.image_size.
    fit: how the image becomes a square, and which of its sides `resize` is; see `config.view.fit`.
    bit_depth: bits that are used of each value in files of more than 8; see `config.source.bit_depth`.
    """

    num_classes: int
    channels: int
    resize: int
    card: Card
    view_size: int
    fit: str = FITS[0]
    bit_depth: int = BIT_DEPTH

    @abc.abstractmethod
    def build(self, dtype: str, *, folded: bool = False) -> Model:
        """Builds the network as pure functions, with activations in `dtype`; `folded`: for the variables of `fold`."""

    @abc.abstractmethod
    def fold(self, variables: Variables) -> Variables:
        """Folds the variables: computes all that does not depend on the input. They are float32."""

    @property
    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Returns the facts that make it this network, ready for JSON, without card and weights; `name` is its name."""

    def with_card(self, card: Card) -> Self:
        """Returns the same network with another card."""
        return dataclasses.replace(self, card=card)  # type: ignore[type-var]

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Returns the shape of one image, [1, S, S, C]."""
        return (1, self.card.image_size, self.card.image_size, self.channels)

    def abstract_variables(self, *, folded: bool = False) -> Any:
        """Returns the tree of ShapeDtypeStruct that its weights must fill, or, if `folded`, those of `fold`."""
        image = jax.ShapeDtypeStruct(self.input_shape, jnp.float32)
        return jax.eval_shape(self.build("float32", folded=folded).init, jax.random.key(0), image)


@dataclasses.dataclass(frozen=True)
class ConfigArchitecture(Architecture):
    """Holds the architecture that a `ModelConfig` describes: one of a family's networks, or the user's own code."""

    model: ModelConfig
    num_classes: int
    channels: int
    resize: int
    card: Card
    view_size: int = 0
    fit: str = FITS[0]
    bit_depth: int = BIT_DEPTH

    def build(self, dtype: str, *, folded: bool = False) -> Model:
        """Builds the network as pure functions; the same arguments give the same object."""
        return models.build(self.model, self.num_classes, dtype, folded)

    def fold(self, variables: Variables) -> Variables:
        """Folds the variables with `models.fold`."""
        return models.fold(self.model, variables)

    @property
    def identity(self) -> dict[str, Any]:
        """Returns the fields of its config; `options` only if it is set, because older files do not have it."""
        fields = dataclasses.asdict(self.model)
        return {name: value for name, value in fields.items() if value or name != "options"}

    def to_json(self) -> dict[str, Any]:
        """Returns the JSON value of this architecture that a file's card holds; `card.from_json` is the inverse.

        It has `fit` and `bit_depth` only if they are not the usual ones, because older files do not have them.
        """
        usual = {"fit": FITS[0], "bit_depth": BIT_DEPTH}
        values = {**dataclasses.asdict(self), "model": self.identity}
        return {name: value for name, value in values.items() if name not in usual or value != usual[name]}


_Architecture = TypeVar("_Architecture", bound=Architecture, covariant=True)


@dataclasses.dataclass(frozen=True)
class Network(Generic[_Architecture]):
    """Holds an architecture with its weights.

    source: the path or name by which the user gave their file.
    origins: for fields of a foreign file's card the file that says it, or that it is assumed; {} of our own files.
    remarks: lines that a run prints about the file before it trains.
    """

    architecture: _Architecture
    variables: Variables
    source: str = ""
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def architecture_of(
    config: Config, class_names: tuple[str, ...], begun_from: Network | None, bit_depth: int = BIT_DEPTH
) -> ConfigArchitecture:
    """Returns the architecture of the student that a resolved config describes.

    Args:
      config: resolved.
      class_names: the names of the data's classes.
      begun_from: the result of `initial.reshaped`; the student takes its shape and its input's normalisation.
      bit_depth: that of the data.

    Raises:
      RunError: `begun_from` has other classes.
    """
    view, model = config.view, config.student
    card = Card(image_size=view.size_for_student, class_names=class_names)
    if begun_from is not None:
        model, before = begun_from.architecture.model, begun_from.architecture.card
        differ = [(a, b) for a, b in zip(before.class_names, class_names, strict=False) if a != b]
        if differ and len(before.class_names) == len(class_names) and not config.init_fresh:
            raise RunError(
                f"{begun_from.source} has other classes, or in another order ({differ[0][0]!r} where the data have "
                f"{differ[0][1]!r}); config.init_fresh='head/.*' initialises the head anew"
            )
        card = dataclasses.replace(card, mean=before.mean, std=before.std)
    return ConfigArchitecture(
        model, config.num_classes, view.channels, view.resize, card, view.image_size, view.fit, bit_depth
    )


def check_same(theirs: ModelConfig, ours: ModelConfig, subject: str, name: str) -> None:
    """Raises RunError if two configs describe different networks."""
    theirs, ours = (models.family_of(model).canonical(model) for model in (theirs, ours))
    for field in (f.name for f in dataclasses.fields(ModelConfig)):
        their, our = getattr(theirs, field), getattr(ours, field)
        if their != our:
            raise RunError(f"{subject}: its {field} is {their!r}, {name}.{field}={our!r}")


def check_shapes(network: Network) -> None:
    """Raises RunError unless a network's weights fit its architecture, whose image_size the caller has changed."""
    arrays, size = by_path(network.variables), network.architecture.card.image_size
    for name, expected in by_path(network.architecture.abstract_variables()).items():
        if arrays[name].shape != expected.shape:
            raise RunError(
                f"{network.source} is not for images of {size} px: its {name} has shape {arrays[name].shape}, "
                f"at this size it would be {expected.shape}"
            )


def other_input(network: Network, fit: str, bit_depth: int) -> list[str]:
    """Says if a network was trained on images that were read, or made square, in another way than those it gets now."""
    before, lines = network.architecture, []
    for field, value, now in (("view.fit", before.fit, fit), ("source.bit_depth", before.bit_depth, bit_depth)):
        if value != now:
            lines.append(
                f"{network.source} was trained with {field}={value}, or does not say; this run has "
                f"config.{field}={now}, and shows it other images"
            )
    return lines


def arrays_of(network: Network) -> Arrays:
    """Returns the variables of a network by path, such as params/fc1/kernel."""
    return {name: np.asarray(leaf) for name, leaf in by_path(network.variables).items()}


def with_input_ranges(network: Network, bits: int) -> Network:
    """Returns the network with layer inputs of so many bits (0: floats); ranges that are not known yet are zero."""
    return rebuilt(network, arrays_of(network), activation_bits=bits)


def rebuilt(network: Network, arrays: Arrays, **fields: Any) -> Network:
    """Rebuilds a network with these variables, and with other fields of its ModelConfig.

    Input ranges that are missing from the arrays become zero. Input ranges that have no place are left out. All other
    arrays must fit.
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
    """Counts the numbers in a tree of parameters."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def num_nonzero(params: Any) -> int:
    """Counts the numbers in a tree of parameters that are not zero."""
    return sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(params))


def sha256(params: Any) -> str:
    """Hashes every parameter's path, dtype, shape and bytes, in order of the paths. Every process must call it."""
    digest = hashlib.sha256()
    for name, value in sorted(by_path(params).items()):
        # A jax.Array caches its first copy on the host. A fresh array has no cache, so this hashes the device's bytes.
        array = np.ascontiguousarray(sharding.to_host(jnp.copy(value) if isinstance(value, jax.Array) else value))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def merge(variables: Variables, given: Network, fresh: str | None) -> tuple[Variables, str]:
    """Takes every leaf from `given`, except those whose path below the collection (head/kernel) matches `fresh`.

    Returns:
      (the merged variables, a line for the log: how many leaves were taken, stayed as they were, or had no place).

    Raises:
      RunError: `given` lacks a leaf, or has it in another shape, and `fresh` does not match it.
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
                "config.init_fresh names what is initialised anew, such as head/.*"
            )
        loaded.append(name)
        return trained[name]

    def listed(names: list[str]) -> str:
        return f" ({', '.join(names[:4])}{', ...' * (len(names) > 4)})" if names else ""

    merged = jax.tree_util.tree_map_with_path(leaf, variables)
    if fresh and not kept:
        raise RunError(f"config.init_fresh={fresh!r} matches no parameter; one is {loaded[0].partition('/')[2]}")
    unused = sorted(trained.keys() - set(loaded))
    return merged, (
        f"{len(loaded)} parameters loaded, {len(kept)} new{listed(kept)}, {len(unused)} unused{listed(unused)}"
    )

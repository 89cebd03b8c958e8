"""A network in one file: an .npz of its parameters by path, with a card that says how to rebuild and feed it.

Names are those of the parameter tree, `params/block1/unit01/conv1/kernel`. Files of others (see `pretrained`) have no
card: what they are follows from their names and shapes, or is declared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill import models
from big_distill.config import Config, ModelConfig, freeze
from big_distill.errors import ConfigError, RunError
from big_distill.pretrained import files, names
from big_distill.state import Card, Model, path_name
from big_distill.workdir import CONFIG_FILE

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}

WEIGHTS_FILE = "student.npz"
_CARD = "__card__"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What rebuilds a network: its config, its outputs and its input."""

    model: ModelConfig
    num_classes: int
    channels: int
    resize: int
    card: Card

    def build(self, dtype: str, *, folded: bool = False) -> Model:
        """The network as pure functions; `folded` as in `models.build`."""
        return models.build(self.model, self.num_classes, dtype, folded)

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """Of one image, [1, S, S, C]."""
        return (1, self.card.image_size, self.card.image_size, self.channels)

    def abstract_variables(self) -> Any:
        """The tree of ShapeDtypeStruct that its weights must fill."""
        image = jax.ShapeDtypeStruct(self.input_shape, jnp.float32)
        return jax.eval_shape(self.build("float32").init, jax.random.key(0), image)


@dataclasses.dataclass(frozen=True)
class Network:
    """An architecture with its weights."""

    architecture: Architecture
    variables: Variables


def architecture_of(config: Config, class_names: tuple[str, ...], initial: Network | None) -> Architecture:
    """The student of a resolved config; its input is normalised as that of the network it starts from.

    Raises:
      RunError: `initial` is a network of another kind.
    """
    view = config.view
    size = view.size_for_student
    card = Card(image_size=size, class_names=class_names)
    if initial is not None:
        theirs, before = initial.architecture.model, initial.architecture.card
        if differing := [
            f.name for f in dataclasses.fields(theirs) if getattr(theirs, f.name) != getattr(config.student, f.name)
        ]:
            name = differing[0]
            raise RunError(
                f"{config.init_from} does not fit this student: its {name} is {getattr(theirs, name)!r}, "
                f"config.student.{name}={getattr(config.student, name)!r}"
            )
        card = dataclasses.replace(card, mean=before.mean, std=before.std)
    resize = view.resize * size // view.image_size  # a smaller student sees as much of an image as the view shows
    return Architecture(config.student, config.num_classes, view.channels, resize, card)


def save(path: pathlib.Path, network: Network) -> None:
    """Writes a weight file, whole or not at all."""
    card = json.dumps(dataclasses.asdict(network.architecture))
    contents: dict[str, Any] = {_CARD: np.frombuffer(card.encode(), np.uint8)}
    for key, value in jax.tree_util.tree_leaves_with_path(network.variables):
        contents[path_name(key)] = np.asarray(value)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez(file, **contents)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(path: str | pathlib.Path, otherwise: Architecture | None = None) -> Network:
    """Reads a weight file, or the one of a finished run directory.

    Args:
      path: a run directory, a file, its address, or a name: all that `pretrained.names.locate` takes.
      otherwise: what a file without a card is, as far as it does not tell itself; a model with a name wins over that.

    Raises:
      RunError: no such file, not a weight file, an architecture that is not known, or names and shapes that differ from
        the architecture's.
    """
    file = names.locate(str(path))
    if file.is_dir():
        if not (file / CONFIG_FILE).is_file():
            raise RunError(f"{file} is not a run directory: it has no {CONFIG_FILE}")
        if not (file / WEIGHTS_FILE).is_file():
            raise RunError(
                f"{file} is not a finished run: it has no {WEIGHTS_FILE}; run the command that made it again to go on"
            )
        file /= WEIGHTS_FILE
    arrays = files.read(file)
    if _CARD in arrays:
        architecture = _from_card(arrays.pop(_CARD), file)
    elif otherwise is not None and otherwise.model.name is not None and file.suffix == ".npz":
        architecture = otherwise
    else:
        architecture, arrays = _foreign(arrays, str(path), file, otherwise)
    return Network(architecture, _fill(architecture.abstract_variables(), arrays, file))


def _foreign(
    arrays: dict[str, np.ndarray], source: str, file: pathlib.Path, otherwise: Architecture | None
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """What a file of another framework is, and its arrays under our names."""
    found = files.translate(arrays, file, source)
    size = found.image_size or (otherwise.card.image_size if otherwise else 224)
    card = Card(image_size=size, mean=found.mean, std=found.std)
    resize = otherwise.resize if otherwise else card.image_size
    return Architecture(found.model, found.num_classes, 3, resize, card), found.arrays


def _from_card(card: np.ndarray, path: pathlib.Path) -> Architecture:
    try:
        values = json.loads(card.tobytes())
        inner: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.pop("card").items()}
        return Architecture(model=freeze(ModelConfig, values.pop("model"), "card.model"), card=Card(**inner), **values)
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} has a damaged card: {error}") from error


def _fill(abstract: Any, arrays: dict[str, np.ndarray], path: pathlib.Path) -> Any:
    """The tree filled by name; shapes may differ by axes of length one ([1, 1, 1, C] for [C])."""
    if not any(name.startswith("params/") for name in arrays):
        arrays = {f"params/{name}": value for name, value in arrays.items()}
    expected = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    missing, unused = sorted(expected.keys() - arrays.keys()), sorted(arrays.keys() - expected.keys())
    if missing or unused:
        raise RunError(
            f"{path} does not fit the architecture: "
            f"{len(missing)} parameters are missing ({', '.join(missing[:3]) or '-'}), "
            f"{len(unused)} are not known ({', '.join(unused[:3]) or '-'})"
        )

    def leaf(key: jax.tree_util.KeyPath, wanted: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path_name(key)
        value = arrays[name]
        if [n for n in value.shape if n != 1] != [n for n in wanted.shape if n != 1]:
            raise RunError(f"{path}: {name} has shape {value.shape}, the architecture has {wanted.shape}")
        return value.reshape(wanted.shape).astype(wanted.dtype)

    return jax.tree_util.tree_map_with_path(leaf, abstract)


@dataclasses.dataclass(frozen=True)
class Merge:
    """A tree with another's leaves, and what became of them.

    loaded: names of the leaves that were taken over.
    fresh: names of those that stayed as they were.
    unused: names of the given ones that found no place.
    """

    variables: Variables
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        def some(names: tuple[str, ...]) -> str:
            return f" ({', '.join(names[:4])}{', ...' * (len(names) > 4)})" if names else ""

        return (
            f"{len(self.loaded)} parameters loaded, {len(self.fresh)} new{some(self.fresh)}, "
            f"{len(self.unused)} unused{some(self.unused)}"
        )


def merge(variables: Variables, given: Variables, fresh: str | None, path: str) -> Merge:
    """Takes every leaf from `given`, except those whose path below the collection (head/kernel) matches `fresh`.

    Raises:
      RunError: a leaf that is neither there in this shape nor matched by `fresh`.
    """
    theirs = {path_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(given)}
    loaded: list[str] = []
    kept: list[str] = []

    def leaf(key: jax.tree_util.KeyPath, ours: Any) -> Any:
        name = path_name(key)
        if fresh and re.fullmatch(fresh, name.partition("/")[2]):
            kept.append(name)
            return ours
        if name not in theirs or theirs[name].shape != ours.shape:
            shape = theirs[name].shape if name in theirs else "missing"
            raise RunError(
                f"{path} does not fit this student: {name} is {shape} there and {ours.shape} here; "
                "config.init_fresh names what is to start anew, such as head/.*"
            )
        loaded.append(name)
        return theirs[name]

    merged = jax.tree_util.tree_map_with_path(leaf, variables)
    if fresh and not kept:
        raise RunError(f"config.init_fresh={fresh!r} matches no parameter, e.g. not {loaded[0].partition('/')[2]}")
    return Merge(merged, tuple(loaded), tuple(kept), tuple(sorted(theirs.keys() - set(loaded))))


def num_params(params: Any) -> int:
    """How many numbers a tree of parameters holds."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))


def sha256(params: Any) -> str:
    """Hash of every parameter's path, dtype, shape and bytes, in order of the paths."""
    digest = hashlib.sha256()
    leaves = sorted((path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params))
    for name, value in leaves:
        array = np.ascontiguousarray(value)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

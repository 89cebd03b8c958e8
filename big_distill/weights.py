"""A network in one file: an .npz of its parameters by path, with a card that says how to rebuild and feed it.

Names are those of the parameter tree, `params/block1/unit01/conv1/kernel`. Files of others (see `pretrained`) have no
card: what they are follows from their names and shapes, or is declared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill import atomic, models, sharding
from big_distill.config import Config, ModelConfig, freeze
from big_distill.errors import ConfigError, RunError
from big_distill.families import BIT_BLOCKS, check_model
from big_distill.pretrained import files, names
from big_distill.state import Card, Model, path_name
from big_distill.workdir import ARCHITECTURE_FILE, CONFIG_FILE, WEIGHTS_FILE, read_config, write_json

Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}

CARD_SUFFIX = ".card.json"
_CARD = "__card__"
_MAX_SIZE = 1 << 20  # of a card's numbers: no network is built, however small its file, whose shapes overflow


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


def write_architecture(workdir: pathlib.Path, architecture: Architecture) -> None:
    """Keeps in a run directory what is trained there: a resume does not depend on what the run began from."""
    write_json(workdir / ARCHITECTURE_FILE, dataclasses.asdict(architecture))


def read_architecture(workdir: pathlib.Path) -> Architecture:
    """What `write_architecture` kept.

    Raises:
      RunError: it is not there, or damaged.
    """
    path = workdir / ARCHITECTURE_FILE
    if not path.is_file() and (workdir / WEIGHTS_FILE).is_file():
        return load(workdir).architecture
    try:
        return from_json(path.read_bytes(), path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}): begin again in another --workdir") from error


def arrays_of(network: Network) -> dict[str, np.ndarray]:
    """What a weight file of ours holds: the parameters by path, and the card."""
    card = json.dumps(dataclasses.asdict(network.architecture), separators=(",", ":"))
    arrays = {_CARD: np.frombuffer(card.encode(), np.uint8)}
    for key, value in jax.tree_util.tree_leaves_with_path(network.variables):
        arrays[path_name(key)] = np.asarray(value)
    return arrays


def save(path: pathlib.Path, network: Network) -> None:
    """Writes a weight file, whole or not at all."""
    contents: dict[str, Any] = arrays_of(network)
    with atomic.writing(path) as file:
        np.savez(file, **contents)


def load(path: str | pathlib.Path, otherwise: Architecture | None = None) -> Network:
    """Reads a weight file, or the one of a finished run directory.

    Args:
      path: a run directory, a file, its address, or a name: all that `pretrained.names.locate` takes.
      otherwise: what a file without a card is, as far as it does not tell itself; a model with a name wins over that.

    Raises:
      RunError: no such file, not a weight file, an architecture that is not known or is your own code without a config
        that names it, or names and shapes that differ from the architecture's.
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
        try:
            arrays = files.read(file)
        except RunError as error:
            raise RunError(f"{error}; remove it and the command that made it makes it again") from error
    else:
        arrays = files.read(file)
    if _CARD in arrays:
        architecture = from_json(arrays.pop(_CARD).tobytes(), file)
        _check_own(architecture.model, file, otherwise)
    else:
        architecture, arrays = _foreign(arrays, str(path), file, otherwise)
    return Network(architecture, _fill(architecture.abstract_variables(), arrays, file), str(path))


def _is_own(model: ModelConfig) -> bool:
    return ":" in (model.name or "")


def _check_own(model: ModelConfig, file: pathlib.Path, otherwise: Architecture | None) -> None:
    """What is imported and called a config says, the user's or that of the run directory; never a file by itself."""
    if not _is_own(model) or (otherwise is not None and otherwise.model.name == model.name):
        return
    run = file.parent
    if not (run / CONFIG_FILE).is_file() or read_config(run).student.name != model.name:
        raise RunError(
            f"{file} asks for {model.name!r}, which only a config may: leave it in its run directory, or set "
            f"config.teacher.model.name={model.name!r}; nothing was imported"
        )


def announced(path: str, otherwise: Architecture) -> Architecture:
    """What `load` would find, but nothing is fetched: of what is not here, as far as config and name tell.

    Args:
      path: as `load` takes it.
      otherwise: as `load` takes it; of a file that is not here the classes, the channels and what its name leaves open.

    Raises:
      ConfigError: neither tells the architecture.
      RunError: something is here, but no weights.
    """
    local = pathlib.Path(path).expanduser()
    if "://" not in path and (local / ARCHITECTURE_FILE).is_file():
        return read_architecture(local)
    if "://" not in path and local.exists():
        return load(path, otherwise).architecture
    model = otherwise.model if otherwise.model.name is not None else names.model_of(path)
    if model is None:
        raise ConfigError(
            f"config.teacher.path={path!r} is not here and its name does not say what it is: "
            "config.teacher.model.name does, with .depth, .width and whatever else that model reads"
        )
    card = dataclasses.replace(otherwise.card, image_size=names.image_size(path) or otherwise.card.image_size)
    return dataclasses.replace(otherwise, model=model, card=card)


def _foreign(
    arrays: dict[str, np.ndarray], source: str, file: pathlib.Path, otherwise: Architecture | None
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """What a file without a card of ours is, and its arrays under our names."""
    declared = otherwise if otherwise is not None and otherwise.model.name is not None else None
    try:
        found = files.translate(arrays, file, source)
    except RunError:
        if declared is None:
            raise
        card = _beside(file, declared.card, declared.num_classes)
        return dataclasses.replace(declared, card=card), arrays  # our names, or `_fill` says what is missing
    if declared is not None:
        check_same(found.model, declared.model, f"{source} is another network", "config.teacher.model")
    size = found.image_size or (otherwise.card.image_size if otherwise else 224)
    card = _beside(file, Card(image_size=size, mean=found.mean, std=found.std), found.num_classes)
    resize = otherwise.resize if otherwise else card.image_size
    return Architecture(found.model, found.num_classes, found.channels, resize, card), found.arrays


def _beside(file: pathlib.Path, card: Card, num_classes: int) -> Card:
    """The card of a foreign file, corrected by the fields of the JSON file beside it, teacher.card.json, if any.

    Those of `Card`, and instead of mean and std a `value_range`, such as [-1, 1], that pixels are brought to.
    """
    path = file.with_suffix(CARD_SUFFIX)
    if not path.is_file():
        return card
    try:
        given = json.loads(path.read_text())
        if "value_range" in given:
            if given.keys() & {"mean", "std"}:
                raise ConfigError("value_range stands instead of mean and std")
            low, high = given.pop("value_range")
            given |= {"mean": [-low / (high - low)], "std": [1 / (high - low)]}
        return _card({**dataclasses.asdict(card), **given}, num_classes)
    except (ConfigError, OSError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is not a card: {error}") from error


def _card(values: Mapping[str, Any], num_classes: int) -> Card:
    """Raises ConfigError unless these values make a card."""
    card: Card = freeze(Card, values, "card")
    if len(card.class_names) not in (0, num_classes):
        raise ConfigError(f"{len(card.class_names)} class_names, but the network has {num_classes} classes")
    if not 1 <= card.image_size <= _MAX_SIZE:
        raise ConfigError(f"image_size={card.image_size}: expected an integer from 1 to {_MAX_SIZE}")
    for name, row, least in (("mean", card.mean, -math.inf), ("std", card.std, 0)):
        if not row or min(row) <= least:
            raise ConfigError(f"{name}={row}: expected finite numbers, those of std above 0")
    return card


def from_json(text: str | bytes, path: pathlib.Path) -> Architecture:
    """The inverse of `json.dumps(dataclasses.asdict(architecture))`; `path` is where the text is from."""
    try:
        values = json.loads(text)
        card = _card(values.pop("card"), values["num_classes"])
        model: ModelConfig = freeze(ModelConfig, values.pop("model"), "card.model")
        for name, number in values.items():
            if type(number) is not int or not (name != "view_size") <= number <= _MAX_SIZE:
                raise ConfigError(f"{name}={number!r}: expected an integer from 1 to {_MAX_SIZE}")
        if not _is_own(model):
            check_model(model, card.image_size, "card.model")
        return Architecture(model=model, card=card, **values)
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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


def num_nonzero(params: Any) -> int:
    """How many of them are not zero."""
    return sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(params))


def sha256(params: Any) -> str:
    """Hash of every parameter's path, dtype, shape and bytes, in order of the paths; of split ones in all processes."""
    digest = hashlib.sha256()
    leaves = sorted((path_name(p), x) for p, x in jax.tree_util.tree_leaves_with_path(params))
    for name, value in leaves:
        # A jax.Array keeps its first host copy: of a fresh one this hashes what the device holds now.
        array = np.ascontiguousarray(sharding.to_host(jnp.copy(value) if isinstance(value, jax.Array) else value))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()

"""A network in one file: an .npz of its parameters by path, with a card that says how to rebuild and feed it.

Names are those of the parameter tree, `params/block1/unit01/conv1/kernel`; the BiT distillation release's files, which
lack the `params/` and the card, use the same names and are read too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pathlib
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_distill import models
from big_distill.config import Config, ModelConfig, freeze
from big_distill.errors import ConfigError, RunError
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

    def build(self, dtype: str) -> Model:
        """The network as pure functions."""
        return models.build(self.model, self.num_classes, dtype)

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
    card = Card(image_size=view.image_size, class_names=class_names)
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
    return Architecture(config.student, config.num_classes, view.channels, view.resize, card)


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
      path: an .npz, or a run directory.
      otherwise: the architecture of a file without a card.

    Raises:
      RunError: no such file, not an .npz, no card where one is needed, or names and shapes that differ from the
        architecture's.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        if not (path / CONFIG_FILE).is_file():
            raise RunError(f"{path} is not a run directory: it has no {CONFIG_FILE}")
        if not (path / WEIGHTS_FILE).is_file():
            raise RunError(
                f"{path} is not a finished run: it has no {WEIGHTS_FILE}; run the command that made it again to go on"
            )
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise RunError(f"{path} does not exist: expected a run directory or a weight file (.npz)")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is not a weight file (.npz), or it is damaged") from error
    architecture = _architecture(arrays.pop(_CARD), path) if _CARD in arrays else otherwise
    if architecture is None:
        raise RunError(f"{path} has no card: say what it is with config.teacher.model.name and its fields")
    return Network(architecture, _fill(architecture.abstract_variables(), arrays, path))


def _architecture(card: np.ndarray, path: pathlib.Path) -> Architecture:
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


def check_same(wanted: Any, given: Any, path: str) -> None:
    """Raises RunError, naming one, unless both trees have the same names and shapes."""
    shapes = [{path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(t)} for t in (wanted, given)]
    for name in shapes[0] | shapes[1]:
        ours, theirs = shapes[0].get(name), shapes[1].get(name)
        if ours != theirs:
            raise RunError(f"{path} does not fit this student: {name} is {theirs} there and {ours} here")


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

"""A network in one file: an .npz of its parameters by path, with a card that says how to rebuild and feed it.

Names are those of the parameter tree, `params/block1/unit01/conv1/kernel`. Files of others (see `pretrained`) have no
card: what they are follows from their names and shapes, or is declared.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from big_distill.config import ModelConfig
from big_distill.errors import ConfigError, RunError
from big_distill.files import atomic
from big_distill.run_dir.layout import ARCHITECTURE_FILE, CONFIG_FILE, WEIGHTS_FILE, read_config, write_json
from big_distill.state import Card, path_name
from big_distill.weights.architecture import Architecture, Network, check_same
from big_distill.weights.card import card_beside, from_json, is_user_code
from big_distill.weights.pretrained import files, names

_CARD = "__card__"


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


def contents(network: Network) -> dict[str, np.ndarray]:
    """What a weight file of ours holds: the parameters by path, and the card."""
    card = json.dumps(dataclasses.asdict(network.architecture), separators=(",", ":"))
    arrays = {_CARD: np.frombuffer(card.encode(), np.uint8)}
    for key, value in jax.tree_util.tree_leaves_with_path(network.variables):
        arrays[path_name(key)] = np.asarray(value)
    return arrays


def save(path: pathlib.Path, network: Network) -> None:
    """Writes a weight file, whole or not at all."""
    arrays: dict[str, Any] = contents(network)
    with atomic.writing(path) as file:
        np.savez(file, **arrays)


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


def _check_own(model: ModelConfig, file: pathlib.Path, otherwise: Architecture | None) -> None:
    """What is imported and called a config says, the user's or that of the run directory; never a file by itself."""
    if not is_user_code(model) or (otherwise is not None and otherwise.model.name == model.name):
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
        card = card_beside(file, declared.card, declared.num_classes)
        return dataclasses.replace(declared, card=card), arrays  # our names, or `_fill` says what is missing
    if declared is not None:
        check_same(found.model, declared.model, f"{source} is another network", "config.teacher.model")
    size = found.image_size or (otherwise.card.image_size if otherwise else 224)
    card = card_beside(file, Card(image_size=size, mean=found.mean, std=found.std), found.num_classes)
    resize = otherwise.resize if otherwise else card.image_size
    return Architecture(found.model, found.num_classes, found.channels, resize, card), found.arrays


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

"""Reads and writes a network as one .npz: its variables by path, and a card that says how to rebuild and feed it.

The names are those of the variables' tree, such as `params/block1/unit01/conv1/kernel`. Files of others (see
`pretrained`) have no card: their architecture follows from their names and shapes, or the config declares it.
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
from big_distill.state import Card, by_path, path_name
from big_distill.weights.architecture import Arrays, ConfigArchitecture, Network, arrays_of, check_same
from big_distill.weights.card import ASSUMED, card_beside, card_described, from_json, is_user_code, place_of
from big_distill.weights.pretrained import formats, input_config, names

_CARD = "__card__"


def write_architecture(workdir: pathlib.Path, architecture: ConfigArchitecture) -> None:
    """Writes the architecture into a run directory, so that a resume does not need the file that the run began from."""
    write_json(workdir / ARCHITECTURE_FILE, architecture.to_json())


def read_architecture(workdir: pathlib.Path) -> ConfigArchitecture:
    """Reads the architecture that `write_architecture` wrote.

    Raises:
      RunError: the file is missing or damaged.
    """
    path = workdir / ARCHITECTURE_FILE
    if not path.is_file() and (workdir / WEIGHTS_FILE).is_file():
        return load(workdir).architecture
    try:
        return from_json(path.read_bytes(), path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error}): begin again in another --workdir") from error


def contents(network: Network) -> Arrays:
    """Returns the arrays of a weight file of ours: the variables by path, and the card."""
    card = json.dumps(network.architecture.to_json(), separators=(",", ":"))
    return {_CARD: np.frombuffer(card.encode(), np.uint8), **arrays_of(network)}


def save(path: pathlib.Path, network: Network) -> None:
    """Writes a weight file, whole or not at all."""
    arrays: dict[str, Any] = contents(network)
    with atomic.writing(path) as file:
        np.savez(file, **arrays)


def load(path: str | pathlib.Path, otherwise: ConfigArchitecture | None = None) -> Network:
    """Reads a weight file, or the one of a finished run directory.

    Args:
      path: a run directory, a file, its address, or a name: all that `pretrained.names.locate` takes.
      otherwise: the architecture of a file without a card, where its names and shapes do not tell; if its model has a
        name, the file must hold that model.

    Raises:
      RunError: no such file; not a weight file; an architecture that is unknown, or is your own code and no config
        names it; names and shapes that differ from the architecture's.
    """
    file = names.locate(str(path))
    if file.is_dir():
        held = [path.name for path in sorted(file.iterdir()) if formats.suffix_of(path) in formats.SUFFIXES]
        if held and WEIGHTS_FILE not in held:
            raise RunError(f"{file} is not a finished run, but holds {', '.join(held)[:200]}: name one of them")
        if not (file / CONFIG_FILE).is_file():
            raise RunError(f"{file} is not a run directory: it has no {CONFIG_FILE}")
        if not (file / WEIGHTS_FILE).is_file():
            raise RunError(
                f"{file} is not a finished run: it has no {WEIGHTS_FILE}; give the command that made it again, to go on"
            )
        file /= WEIGHTS_FILE
        try:
            arrays, remark = formats.read(file)
        except RunError as error:
            raise RunError(f"{error}; remove the file, and the run's command writes it again") from error
    else:
        arrays, remark = formats.read(file)
    origins: dict[str, str] = {}
    if _CARD in arrays:
        architecture = from_json(arrays.pop(_CARD).tobytes(), file)
        _check_own(architecture.model, file, otherwise)
        card, origins = card_beside(file, architecture.card, architecture.num_classes)
        architecture = architecture.with_card(card)
        remarks = [remark]
    else:
        architecture, arrays, origins, remarks = _foreign(arrays, str(path), file, otherwise)
        remarks.append(remark)
    variables = _fill(architecture.abstract_variables(), arrays, file)
    return Network(architecture, variables, str(path), origins, tuple(f"{path}: {line}" for line in remarks if line))


def card_place(source: str) -> pathlib.Path:
    """Returns where a card corrects the file that `load` reads for `source`; `card.place_of` has the names."""
    file = names.locate(source)
    return place_of(file / WEIGHTS_FILE if file.is_dir() else file)


def _check_own(model: ModelConfig, file: pathlib.Path, otherwise: ConfigArchitecture | None) -> None:
    """Raises RunError if a file asks for user code that neither the user's config nor the run directory's names."""
    if not is_user_code(model) or (otherwise is not None and otherwise.model.name == model.name):
        return
    run = file.parent
    if not (run / CONFIG_FILE).is_file() or read_config(run).student.name != model.name:
        raise RunError(
            f"{file} asks for {model.name!r}, which only a config may: leave it in its run directory, or set "
            f"config.teacher.model.name={model.name!r}; nothing was imported"
        )


def announced(path: str, otherwise: ConfigArchitecture) -> ConfigArchitecture:
    """Returns the architecture that `load` would find, but fetches nothing: config and name describe a missing file.

    Args:
      path: as `load` takes it.
      otherwise: as `load` takes it; it says the classes, the channels and all that the name leaves open.

    Raises:
      ConfigError: neither says the architecture.
      RunError: the path exists, but holds no weights.
    """
    local = pathlib.Path(path).expanduser()
    if "://" not in path and (local / ARCHITECTURE_FILE).is_file():
        return read_architecture(local)
    if "://" not in path and local.exists():
        return load(path, otherwise).architecture
    model = otherwise.model if otherwise.model.name is not None else names.model_of(path)
    if model is None:
        raise ConfigError(
            f"config.teacher.path={path!r} does not exist here, and the name does not say what network it is: set "
            "config.teacher.model.name, with .depth, .width and the other fields that this model reads"
        )
    card = dataclasses.replace(otherwise.card, image_size=names.image_size(path) or otherwise.card.image_size)
    return dataclasses.replace(otherwise, model=model, card=card)


def _foreign(
    arrays: dict[str, np.ndarray], source: str, file: pathlib.Path, otherwise: ConfigArchitecture | None
) -> tuple[ConfigArchitecture, dict[str, np.ndarray], dict[str, str], list[str]]:
    """Describes a file without a card of ours.

    Returns:
      Its architecture, its arrays under our names, and `origins` and `remarks` as `Network` has them.
    """
    declared = otherwise if otherwise is not None and otherwise.model.name is not None else None
    described = input_config.beside(file)
    origins = {"mean": ASSUMED, "std": ASSUMED, "class_names": ASSUMED}
    try:
        name = next((said.name for said in described if said.name), None)
        translated = formats.translate(arrays, file, source, name)
    except RunError:
        if declared is None:
            raise
        architecture = declared  # the arrays have our names, or `_fill` says what is missing
    else:
        if declared is not None:
            check_same(translated.model, declared.model, f"{source} is another network", "config.teacher.model")
        arrays = translated.arrays
        size = translated.image_size or (otherwise.card.image_size if otherwise else 224)
        card = Card(image_size=size, mean=translated.mean, std=translated.std)
        resize = otherwise.resize if otherwise else 0
        architecture = ConfigArchitecture(translated.model, translated.num_classes, translated.channels, resize, card)
        if translated.named:
            origins |= {"mean": "its name", "std": "its name"}
        if source in names.VANITY or source in names.PACKAGES:
            origins = {}
    card, num_classes, remarks = architecture.card, architecture.num_classes, list[str]()
    for said in described:
        card, found = card_described(said, card, num_classes, architecture.channels)
        origins |= found
        if said.evaluation:
            remarks.append(
                f"{said.path.name} has {said.evaluation}; here config.view.resize and image_size choose the cut, and "
                "resizing is bilinear"
            )
    card, found = card_beside(file, card, num_classes)
    resize = architecture.resize or max([card.image_size, *(said.resize for said in described)])
    return dataclasses.replace(architecture, card=card, resize=resize), arrays, origins | found, remarks


def _fill(abstract: Any, arrays: dict[str, np.ndarray], path: pathlib.Path) -> Any:
    """Fills the tree by name; shapes may differ by axes of length one ([1, 1, 1, C] for [C])."""
    if not any(name.startswith("params/") for name in arrays):
        arrays = {f"params/{name}": value for name, value in arrays.items()}
    expected = by_path(abstract).keys()
    missing, unused = sorted(expected - arrays.keys()), sorted(arrays.keys() - expected)
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

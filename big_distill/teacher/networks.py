"""Finds and reads the networks of a teacher, and checks that they suit the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

from big_distill import weights
from big_distill.config import OWN_TEACHER, Config, TeacherConfig
from big_distill.errors import ConfigError
from big_distill.run_dir.layout import ARCHITECTURE_FILE, INIT_DIR, TEACHER_DIR
from big_distill.state import Card


def identity(networks: Sequence[weights.Network]) -> str:
    """Hashes a teacher (SHA-256): its networks, their cards, and their weights as the files have them, unfolded."""
    what = [(n.architecture.identity, dataclasses.asdict(n.architecture.card)) for n in networks]
    facts = json.dumps([what, weights.sha256([network.variables for network in networks])], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def class_names(networks: Sequence[weights.Network], num_classes: int) -> tuple[str, ...]:
    """Returns the names of the first network that names so many classes; they set the order if the data name none."""
    named = (network.architecture.card.class_names for network in networks)
    return next((names for names in named if len(names) == num_classes), ())


def paths_of(config: Config, workdir: pathlib.Path) -> tuple[str, ...]:
    """Returns where the networks of a run's teacher are: the config's paths, or directories in the run; () without."""
    if config.teacher.config:
        return (str(workdir / TEACHER_DIR),)
    if config.teacher.paths != (OWN_TEACHER,):
        return config.teacher.paths
    owner = workdir.parent  # the run that has this one as its first stage
    while owner.name == INIT_DIR and not (owner / TEACHER_DIR).is_dir():
        owner = owner.parent
    return (str(owner / TEACHER_DIR),)


def read(config: Config, workdir: pathlib.Path) -> tuple[weights.Network, ...]:
    """Reads the networks of a run's teacher, none for a supervised run; weights are as the files have them, unfolded.

    A teacher that the config trains first is expected in the run directory, finished. The input that `config.teacher`
    sets wins over the cards.

    Raises:
      RunError: a file that cannot be used.
      ConfigError: a teacher whose classes, channels or size do not suit the run.
    """
    networks = []
    for index, path in enumerate(paths_of(config, workdir)):
        network = weights.load(path, _declared(config))
        network = dataclasses.replace(
            network,
            architecture=_as_told(path, index, network.architecture, config),
            origins={name: _told(config.teacher).get(name, origin) for name, origin in network.origins.items()},
        )
        weights.check_shapes(network)  # a ViT's shapes are those of one image_size
        networks.append(network)
    return tuple(networks)


def announced(config: Config, workdir: pathlib.Path | None = None) -> tuple[weights.Architecture, ...]:
    """Returns the architectures of `read`'s networks before there are any; trains and fetches nothing.

    A file is read only if it is here. `workdir=None` says that there is no run directory yet.

    Raises:
      ConfigError: a file that is not here and whose architecture is not known, or that does not suit the run.
    """
    nested, named = config.teacher.config, list[tuple[str, weights.Architecture]]()
    if nested is not None and not (workdir and (workdir / TEACHER_DIR / ARCHITECTURE_FILE).is_file()):
        named = [(TEACHER_DIR, weights.architecture_of(nested, (), None))]
    else:
        paths = paths_of(config, workdir) if workdir else config.teacher.paths
        named = [(path, weights.announced(path, _declared(config))) for path in paths]
    return tuple(_as_told(path, index, found, config) for index, (path, found) in enumerate(named))


def _as_told(path: str, index: int, teacher: weights.Architecture, config: Config) -> weights.Architecture:
    """Returns the teacher with the input that the config sets; raises ConfigError if it does not suit the run."""
    told, view = config.teacher, config.view
    sizes = told.image_size or (0,)
    size = sizes[index % len(sizes)] or teacher.card.image_size
    mean, std = told.input_mean or teacher.card.mean, told.input_std or teacher.card.std
    teacher = teacher.with_card(dataclasses.replace(teacher.card, image_size=size, mean=mean, std=std))
    if teacher.num_classes != config.num_classes:
        message = f"teacher {path} has {teacher.num_classes} classes, config.num_classes={config.num_classes}"
        if teacher.num_classes < config.num_classes:
            raise ConfigError(message)
        if not teacher.card.class_names:
            raise ConfigError(
                f"{message}, and it does not name them: a card with class_names says which are the data's"
            )
    if teacher.channels != view.channels:
        raise ConfigError(f"teacher {path} has {teacher.channels} channels, config.view.channels={view.channels}")
    for name, values in (("mean", teacher.card.mean), ("std", teacher.card.std)):
        if len(values) not in (1, teacher.channels):
            raise ConfigError(
                f"teacher {path}: its card's {name} has {len(values)} values, expected one or {teacher.channels}"
            )
    if size > view.image_size:
        raise ConfigError(
            f"teacher {path} needs images of {size} px, config.view.image_size={view.image_size}: "
            "a view is as large as the largest network needs (or a convolutional one sees config.teacher.image_size)"
        )
    return teacher


def _told(teacher: TeacherConfig) -> dict[str, str]:
    """Returns the fields of cards that the config sets, each with the name of the config's field."""
    fields = {"image_size": "image_size", "mean": "input_mean", "std": "input_std"}
    return {ours: f"config.teacher.{theirs}" for ours, theirs in fields.items() if getattr(teacher, theirs)}


def _declared(config: Config) -> weights.ConfigArchitecture:
    """Returns the architecture that the config declares for a file without a card."""
    view = config.view
    card = Card(image_size=view.image_size)
    return weights.ConfigArchitecture(config.teacher.model, config.num_classes, view.channels, view.resize, card)

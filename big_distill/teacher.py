"""A frozen teacher, from one or several run directories or weight files."""

from __future__ import annotations

import pathlib

from jax.sharding import Mesh

from big_distill import sharding, weights
from big_distill.config import Config
from big_distill.errors import ConfigError
from big_distill.state import Card, Teacher
from big_distill.workdir import TEACHER_DIR


def load(config: Config, workdir: pathlib.Path, mesh: Mesh) -> Teacher | None:
    """Reads, checks and places the teacher(s) of a run on every device; None for a supervised run.

    A teacher that the config trains first is expected in the run directory, finished.

    Raises:
      RunError: a file that cannot be used.
      ConfigError: a teacher whose classes, channels or size do not suit the run.
    """
    if config.teacher.config is not None:
        paths = [workdir / TEACHER_DIR]
    elif config.teacher.path:
        paths = [pathlib.Path(path.strip()) for path in config.teacher.path.split(",")]
    else:
        return None
    networks = [weights.load(path, _declared(config)) for path in paths]
    for path, network in zip(paths, networks, strict=True):
        _check(path, network.architecture, config)
    return Teacher(
        variables=sharding.replicate(mesh, tuple(n.variables for n in networks)),
        models=tuple(n.architecture.build(config.dtype) for n in networks),
        cards=tuple(n.architecture.card for n in networks),
        mean=config.teacher.mean,
    )


def _check(path: pathlib.Path, teacher: weights.Architecture, config: Config) -> None:
    view, size = config.view, teacher.card.image_size
    if teacher.num_classes != config.num_classes:
        raise ConfigError(f"teacher {path} has {teacher.num_classes} classes, config.num_classes={config.num_classes}")
    if teacher.channels != view.channels:
        raise ConfigError(f"teacher {path} has {teacher.channels} channels, config.view.channels={view.channels}")
    if size > view.image_size:
        raise ConfigError(
            f"teacher {path} needs images of {size} px, config.view.image_size={view.image_size}: "
            "a view is as large as the largest network needs"
        )


def _declared(config: Config) -> weights.Architecture | None:
    """The architecture that `config.teacher.model` declares, for a file without a card."""
    if config.teacher.model.name is None:
        return None
    return weights.Architecture(
        model=config.teacher.model,
        num_classes=config.num_classes,
        channels=config.view.channels,
        resize=config.view.resize,
        card=Card(image_size=config.view.image_size),
    )

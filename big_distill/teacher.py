"""A frozen teacher: one or several networks, read and checked, folded, and placed on every device."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from jax.sharding import Mesh

from big_distill import models, sharding, weights
from big_distill.config import Config, nearest
from big_distill.errors import ConfigError
from big_distill.state import Card, Teacher
from big_distill.workdir import TEACHER_DIR


def load(config: Config, workdir: pathlib.Path, mesh: Mesh, class_names: Sequence[str]) -> Teacher | None:
    """The teacher of a run, ready to use; see `read` and `freeze`."""
    return freeze(read(config, workdir), config, mesh, class_names)


def read(config: Config, workdir: pathlib.Path) -> tuple[weights.Network, ...]:
    """The networks of a run's teacher, none for a supervised run: their weights as the files have them, unfolded.

    A teacher that the config trains first is expected in the run directory, finished. What `config.teacher` says of the
    input wins over the cards.

    Raises:
      RunError: a file that cannot be used.
      ConfigError: a teacher whose classes, channels or size do not suit the run.
    """
    teacher = config.teacher
    paths = [str(workdir / TEACHER_DIR)] if teacher.config else [p.strip() for p in (teacher.path or "").split(",")]
    if paths == [""]:
        return ()
    sizes = teacher.image_size or (0,)
    networks = []
    for index, path in enumerate(paths):
        network = weights.load(path, _declared(config))
        card = network.architecture.card
        card = dataclasses.replace(
            card,
            image_size=sizes[index % len(sizes)] or card.image_size,
            mean=teacher.input_mean or card.mean,
            std=teacher.input_std or card.std,
        )
        network = dataclasses.replace(network, architecture=dataclasses.replace(network.architecture, card=card))
        _check(path, network.architecture, config)
        networks.append(network)
    return tuple(networks)


def freeze(
    networks: Sequence[weights.Network], config: Config, mesh: Mesh, class_names: Sequence[str], *, folded: bool = True
) -> Teacher | None:
    """Places networks on every device, None without any.

    Args:
      networks: as `read` returns them.
      config: resolved.
      mesh: of the run.
      class_names: of the data, in the order of its labels; the teacher's logits are brought into it.
      folded: whether normalisation that does not depend on the input is computed once, here, and the weights are
        stored in `config.teacher.dtype`; else everything is as the files have it, in float32.
    """
    if not networks:
        return None
    dtype = config.teacher.dtype if folded else "float32"
    variables = (models.fold(n.architecture.model, n.variables, dtype) if folded else n.variables for n in networks)
    return Teacher(
        variables=sharding.replicate(mesh, tuple(variables)),
        models=tuple(n.architecture.build(dtype, folded=folded) for n in networks),
        cards=tuple(n.architecture.card for n in networks),
        orders=tuple(_order(n.architecture.card.class_names, class_names) for n in networks),
        mean=config.teacher.mean,
    )


def _order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each of the data's classes, which of the teacher's logits it is; None if they are the same already."""
    if not theirs or not ours or tuple(theirs) == tuple(ours):
        return None
    if missing := [name for name in ours if name not in theirs]:
        raise ConfigError(f"the teacher has no class {missing[0]!r} of the data{nearest(missing[0], theirs)}")
    return tuple(list(theirs).index(name) for name in ours)


def _check(path: str, teacher: weights.Architecture, config: Config) -> None:
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


def _declared(config: Config) -> weights.Architecture:
    """What the config says of a file without a card."""
    view = config.view
    card = Card(image_size=view.image_size)
    return weights.Architecture(config.teacher.model, config.num_classes, view.channels, view.resize, card)

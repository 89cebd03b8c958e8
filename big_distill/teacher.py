"""A frozen teacher: one or several networks, read and checked, folded, and placed on every device."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

from jax.sharding import Mesh

from big_distill import calibration, models, sharding, weights
from big_distill.calibration import Ranges
from big_distill.config import Config, nearest
from big_distill.errors import ConfigError, RunError
from big_distill.state import Card, Teacher
from big_distill.workdir import CALIBRATION_FILE, TEACHER_DIR


def load(config: Config, workdir: pathlib.Path, mesh: Mesh, class_names: Sequence[str]) -> Teacher | None:
    """The teacher of a run that was trained, ready to use; see `read` and `freeze`.

    Raises:
      RunError: its dtype is int8, and the run directory does not say with which ranges.
    """
    networks = read(config, workdir)
    ranges = calibration.read(workdir, identity(networks)) if config.teacher.dtype == "int8" else ()
    if ranges is None:
        raise RunError(f"{workdir} has no {CALIBRATION_FILE} of this teacher: its training never began")
    return freeze(networks, config, mesh, class_names, ranges)


def identity(networks: Sequence[weights.Network]) -> str | None:
    """SHA-256 of a teacher's weights as its files have them, unfolded; None without a teacher."""
    return weights.sha256([network.variables for network in networks]) if networks else None


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
        _check(path, network, config)
        networks.append(network)
    return tuple(networks)


def freeze(
    networks: Sequence[weights.Network],
    config: Config,
    mesh: Mesh,
    class_names: Sequence[str],
    ranges: Sequence[Ranges] = (),
    *,
    folded: bool = True,
) -> Teacher | None:
    """Places networks on every device, None without any.

    Args:
      networks: as `read` returns them.
      config: resolved.
      mesh: of the run.
      class_names: of the data, in the order of its labels; the teacher's logits are brought into it.
      ranges: of each network, if `config.teacher.dtype` is int8; what is not a convolution of integers is then in
        `config.dtype`.
      folded: whether normalisation that does not depend on the input is computed once, here, and the weights are
        stored in `config.teacher.dtype`; else everything is as the files have it, in float32.
    """
    if not networks:
        return None
    dtype = "float32" if not folded else config.dtype if ranges else config.teacher.dtype

    def frozen(index: int, network: weights.Network) -> weights.Variables:
        if not folded:
            return network.variables
        variables = models.fold(network.architecture.model, network.variables, dtype)
        return models.quantize(variables, ranges[index]) if ranges else variables

    return Teacher(
        variables=sharding.replicate(mesh, tuple(frozen(index, network) for index, network in enumerate(networks))),
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


def _check(path: str, network: weights.Network, config: Config) -> None:
    teacher, view = network.architecture, config.view
    size = teacher.card.image_size
    if teacher.num_classes != config.num_classes:
        raise ConfigError(f"teacher {path} has {teacher.num_classes} classes, config.num_classes={config.num_classes}")
    if teacher.channels != view.channels:
        raise ConfigError(f"teacher {path} has {teacher.channels} channels, config.view.channels={view.channels}")
    if size > view.image_size:
        raise ConfigError(
            f"teacher {path} needs images of {size} px, config.view.image_size={view.image_size}: "
            "a view is as large as the largest network needs"
        )
    weights.check_shapes(network)  # a ViT's are those of one image_size


def _declared(config: Config) -> weights.Architecture:
    """What the config says of a file without a card."""
    view = config.view
    card = Card(image_size=view.image_size)
    return weights.Architecture(config.teacher.model, config.num_classes, view.channels, view.resize, card)

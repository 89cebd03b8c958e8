"""A frozen teacher: one or several networks, read and checked, folded, and placed on the devices."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from big_distill import models, weights
from big_distill.config import OWN_TEACHER, Config
from big_distill.errors import ConfigError, RunError, nearest
from big_distill.parallel import sharding
from big_distill.run_dir.layout import CALIBRATION_FILE, INIT_DIR, PREFLIGHT_FILE, TEACHER_DIR, read_json
from big_distill.state import Card, Teacher
from big_distill.teacher import activation_ranges
from big_distill.teacher.activation_ranges import Ranges


def load(config: Config, workdir: pathlib.Path, mesh: Mesh, class_names: Sequence[str]) -> Teacher | None:
    """The teacher of a run that was trained, ready to use; None without one.

    Raises:
      RunError: it is not the one that the run was trained with, or (int8) nothing is known of its activations.
    """
    networks = read(config, workdir)
    if not networks:
        return None
    now, ranges, file = identity(networks), None, workdir / PREFLIGHT_FILE
    before = read_json(file, {"teacher": str})["teacher"] if file.is_file() else now
    if before != now:
        raise RunError(f"{workdir} was trained with another teacher (hash {before[:12]}, now {now[:12]})")
    if config.teacher.dtype == "int8":
        ranges = activation_ranges.read(workdir, now)
        if ranges is None:
            raise RunError(f"{workdir} has no {CALIBRATION_FILE} of this teacher; the run's own command makes it")
    return place(networks, frozen_variables(networks, config, ranges or ()), config, mesh, class_names)


def identity(networks: Sequence[weights.Network]) -> str:
    """SHA-256 of what a teacher is: its networks, their cards, and their weights as the files have them, unfolded."""
    what = [(dataclasses.asdict(n.architecture.model), dataclasses.asdict(n.architecture.card)) for n in networks]
    facts = json.dumps([what, weights.sha256([network.variables for network in networks])], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()


def class_names(networks: Sequence[weights.Network]) -> tuple[str, ...]:
    """Of the first network that names its classes: their order, where the data have no names."""
    return next((n.architecture.card.class_names for n in networks if n.architecture.card.class_names), ())


def paths_of(config: Config, workdir: pathlib.Path) -> tuple[str, ...]:
    """Where the networks of a run's teacher are: as its config says, or directories inside the run; () without."""
    if config.teacher.config:
        return (str(workdir / TEACHER_DIR),)
    if config.teacher.paths != (OWN_TEACHER,):
        return config.teacher.paths
    owner = workdir.parent  # of the run that this one is the first stage of
    while owner.name == INIT_DIR and not (owner / TEACHER_DIR).is_dir():
        owner = owner.parent
    return (str(owner / TEACHER_DIR),)


def read(config: Config, workdir: pathlib.Path) -> tuple[weights.Network, ...]:
    """The networks of a run's teacher, none for a supervised run: their weights as the files have them, unfolded.

    A teacher that the config trains first is expected in the run directory, finished. What `config.teacher` says of the
    input wins over the cards.

    Raises:
      RunError: a file that cannot be used.
      ConfigError: a teacher whose classes, channels or size do not suit the run.
    """
    networks = []
    for index, path in enumerate(paths_of(config, workdir)):
        network = weights.load(path, _declared(config))
        network = dataclasses.replace(network, architecture=_as_told(path, index, network.architecture, config))
        weights.check_shapes(network)  # a ViT's are those of one image_size
        networks.append(network)
    return tuple(networks)


def announced(config: Config) -> tuple[weights.Architecture, ...]:
    """What the networks of `read` are, before there are any: nothing is trained, fetched or, unless here, read.

    Raises:
      ConfigError: what a file is, which is not here, cannot be told; or it does not suit the run.
    """
    if config.teacher.config is not None:
        named = [(TEACHER_DIR, weights.architecture_of(config.teacher.config, (), None))]
    else:
        named = [(path, weights.announced(path, _declared(config))) for path in config.teacher.paths]
    return tuple(_as_told(path, index, found, config) for index, (path, found) in enumerate(named))


def abstract(architectures: Sequence[weights.Architecture], config: Config, mesh: Mesh) -> Teacher | None:
    """The teacher that `place` makes, as shapes and dtypes; None without one.

    Its classes are taken to be in the order of the data's.
    """
    if not architectures:
        return None
    dtype = config.dtype if config.teacher.dtype == "int8" else config.teacher.dtype
    variables = []
    for architecture in architectures:
        own = architecture.abstract_variables(folded=True)
        if config.teacher.dtype == "int8":
            image = jax.ShapeDtypeStruct(architecture.input_shape, jnp.float32)
            model = architecture.build(dtype, folded=True)
            ranges = jax.eval_shape(functools.partial(models.input_ranges, model), own, image)
            own = models.abstract_quantized(own, tuple(ranges))
        variables.append(models.abstract_cast(own, dtype))
    return Teacher(
        variables=sharding.place(tuple(variables), _shardings(mesh, tuple(variables), config)),
        models=tuple(
            sharding.gathering(mesh, architecture.build(dtype, folded=True)) for architecture in architectures
        ),
        cards=tuple(architecture.card for architecture in architectures),
        orders=(None,) * len(architectures),
        mean=config.teacher.mean,
    )


def frozen_variables(
    networks: Sequence[weights.Network], config: Config, ranges: Sequence[Ranges]
) -> tuple[weights.Variables, ...]:
    """The weights that a run computes with: what does not depend on the input is computed once, here.

    Args:
      networks: as `read` returns them.
      config: resolved; `config.teacher.dtype` is what kernels are stored in. With int8 some are integers, and the
        others in `config.dtype`.
      ranges: of each network, for int8.

    Raises:
      RunError: ranges of other networks.
    """
    int8 = config.teacher.dtype == "int8"
    folded = [models.fold(network.architecture.model, network.variables) for network in networks]
    if int8:
        try:
            folded = [models.quantize(variables, own) for variables, own in zip(folded, ranges, strict=True)]
        except ValueError as error:
            raise RunError(f"{CALIBRATION_FILE} is not of this teacher ({error}): remove it") from error
    return tuple(models.cast(variables, config.dtype if int8 else config.teacher.dtype) for variables in folded)


def place(
    networks: Sequence[weights.Network],
    variables: tuple[weights.Variables, ...],
    config: Config,
    mesh: Mesh,
    class_names: Sequence[str],
    *,
    folded: bool = True,
) -> Teacher:
    """A teacher on the devices, whole on every one or split.

    Args:
      networks: as `read` returns them.
      variables: `frozen_variables`' of these networks, or their own if not `folded`.
      config: resolved.
      mesh: of the run.
      class_names: of the data, in the order of its labels; the teacher's logits are brought into it.
      folded: False for networks that compute as their files have them, in float32.
    """
    dtype = "float32" if not folded else config.dtype if config.teacher.dtype == "int8" else config.teacher.dtype
    return Teacher(
        variables=sharding.put(variables, _shardings(mesh, variables, config)),
        models=tuple(sharding.gathering(mesh, n.architecture.build(dtype, folded=folded)) for n in networks),
        cards=tuple(n.architecture.card for n in networks),
        orders=tuple(_order(n.architecture.card.class_names, class_names) for n in networks),
        mean=config.teacher.mean,
    )


def plain(network: weights.Network, config: Config, mesh: Mesh, class_names: Sequence[str]) -> Teacher:
    """One network as its file has it: what a frozen one is measured against."""
    return place((network,), (network.variables,), config, mesh, class_names, folded=False)


def _shardings(mesh: Mesh, variables: Sequence[weights.Variables], config: Config) -> Any:
    return sharding.rule(mesh, variables) if config.teacher.sharded else sharding.replicated(mesh)


def _order(theirs: Sequence[str], ours: Sequence[str]) -> tuple[int, ...] | None:
    """For each of the data's classes, which of the teacher's logits it is; None if they are the same already."""
    if not theirs or not ours or tuple(theirs) == tuple(ours):
        return None
    if missing := [name for name in ours if name not in theirs]:
        raise ConfigError(f"the teacher has no class {missing[0]!r} of the data{nearest(missing[0], theirs)}")
    return tuple(list(theirs).index(name) for name in ours)


def _as_told(path: str, index: int, teacher: weights.Architecture, config: Config) -> weights.Architecture:
    """The teacher with what the config says of its input; raises ConfigError if it does not suit the run."""
    told, view = config.teacher, config.view
    sizes = told.image_size or (0,)
    size = sizes[index % len(sizes)] or teacher.card.image_size
    mean, std = told.input_mean or teacher.card.mean, told.input_std or teacher.card.std
    teacher = dataclasses.replace(teacher, card=dataclasses.replace(teacher.card, image_size=size, mean=mean, std=std))
    if teacher.num_classes != config.num_classes:
        raise ConfigError(f"teacher {path} has {teacher.num_classes} classes, config.num_classes={config.num_classes}")
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
            "a view is as large as the largest network needs"
        )
    return teacher


def _declared(config: Config) -> weights.Architecture:
    """What the config says of a file without a card."""
    view = config.view
    card = Card(image_size=view.image_size)
    return weights.Architecture(config.teacher.model, config.num_classes, view.channels, view.resize, card)

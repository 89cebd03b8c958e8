"""Freezes teachers: folds networks, rounds them to the dtype that a run computes in, and places them on its devices."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from big_distill import models, weights
from big_distill.config import Config
from big_distill.errors import ConfigError, RunError, nearest
from big_distill.parallel import sharding
from big_distill.run_dir.layout import ACTIVATION_RANGES_FILE, PREFLIGHT_FILE, read_json
from big_distill.state import Teacher
from big_distill.teacher import activation_ranges
from big_distill.teacher.activation_ranges import Ranges
from big_distill.teacher.networks import identity, read


def load(config: Config, workdir: pathlib.Path, mesh: Mesh, class_names: Sequence[str]) -> Teacher | None:
    """Loads the teacher of a run that was trained, ready to use; returns None without one.

    Raises:
      RunError: a teacher that the run was not trained with, or (int8) one whose activation ranges are not known.
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
            raise RunError(f"{workdir} has no {ACTIVATION_RANGES_FILE} of this teacher; the run's own command makes it")
    return freeze(networks, config, mesh, class_names, ranges)


def freeze(
    networks: Sequence[weights.Network],
    config: Config,
    mesh: Mesh,
    class_names: Sequence[str],
    ranges: Sequence[Ranges] | None = None,
) -> Teacher:
    """Builds the teacher that a run computes with; all that does not depend on the input is computed once, here.

    Args:
      networks: networks as `networks.read` returns them.
      config: the resolved config; `config.teacher.dtype` is the dtype of stored kernels. With int8 some kernels are
        integers, and the others are in `config.dtype`.
      mesh: mesh of the run.
      class_names: class names of the data, in the order of its labels; the teacher's logits are brought into it.
      ranges: ranges of each network's activations, for int8.

    Raises:
      ConfigError: a class of the data that the teacher does not have.
      RunError: ranges of other networks.
    """
    folded = [network.architecture.fold(network.variables) for network in networks]
    own_ranges: Sequence[Ranges | None] = ranges or [None] * len(networks)
    try:
        variables = tuple(_stored(one, config, own) for one, own in zip(folded, own_ranges, strict=True))
    except ValueError as error:
        raise RunError(f"{ACTIVATION_RANGES_FILE} is not of this teacher ({error}): remove it") from error
    return _placed([network.architecture for network in networks], variables, config, mesh, class_names)


def plain(network: weights.Network, config: Config, mesh: Mesh, class_names: Sequence[str]) -> Teacher:
    """Builds a teacher of one network as its file has it, in float32; a frozen one is measured against it."""
    return _placed([network.architecture], (network.variables,), config, mesh, class_names, folded=False)


def abstract(architectures: Sequence[weights.Architecture], config: Config, mesh: Mesh) -> Teacher | None:
    """Builds the teacher that `freeze` makes, as shapes and dtypes; returns None without one.

    Its classes are assumed to be in the order of the data's.
    """
    if not architectures:
        return None
    variables = []
    for architecture in architectures:
        ranges = None
        own = architecture.abstract_variables(folded=True)
        if config.teacher.dtype == "int8":
            image = jax.ShapeDtypeStruct(architecture.input_shape, jnp.float32)
            model = architecture.build(dtype_of(config), folded=True)
            ranges = jax.eval_shape(functools.partial(models.input_ranges, model), own, image)
        variables.append(_stored(own, config, ranges))
    return _placed(architectures, tuple(variables), config, mesh, ())


def dtype_of(config: Config) -> str:
    """Returns the dtype of a teacher's activations, and of all that is not stored in integers."""
    return config.dtype if config.teacher.dtype == "int8" else config.teacher.dtype


def _stored(folded: Any, config: Config, ranges: Any) -> Any:
    """Casts folded variables, or their shapes, to the dtypes that they are stored in."""
    if ranges is not None:
        folded = models.quantize(folded, ranges)
    return models.cast(folded, dtype_of(config))


def _placed(
    architectures: Sequence[weights.Architecture],
    variables: tuple[Any, ...],
    config: Config,
    mesh: Mesh,
    class_names: Sequence[str],
    *,
    folded: bool = True,
) -> Teacher:
    """Places arrays, or their shapes, whole on every device or split, as a teacher; one not folded is in float32."""
    abstract = isinstance(jax.tree.leaves(variables)[0], jax.ShapeDtypeStruct)
    shardings = sharding.rule(mesh, variables) if config.teacher.sharded else sharding.replicated(mesh)
    dtype = dtype_of(config) if folded else "float32"
    return Teacher(
        variables=(sharding.place if abstract else sharding.put)(variables, shardings),
        models=tuple(sharding.gathering(mesh, one.build(dtype, folded=folded)) for one in architectures),
        cards=tuple(architecture.card for architecture in architectures),
        orders=tuple(_order(architecture, class_names, config.num_classes, abstract) for architecture in architectures),
        mean=config.teacher.mean,
    )


def _order(
    teacher: weights.Architecture, ours: Sequence[str], num_classes: int, abstract: bool
) -> tuple[int, ...] | None:
    """Finds for each of the data's classes which of the teacher's logits it is; None if the order stays.

    A teacher with more classes than the data gives the logits of theirs alone, any of them if it is abstract.
    """
    theirs = teacher.card.class_names
    if theirs and ours:
        if tuple(theirs) == tuple(ours):
            return None
        if missing := [name for name in ours if name not in theirs]:
            raise ConfigError(f"the teacher has no class {missing[0]!r} of the data{nearest(missing[0], theirs)}")
        index = {name: i for i, name in enumerate(theirs)}
        return tuple(index[name] for name in ours)
    if teacher.num_classes <= num_classes:
        return None
    if not abstract:
        raise ConfigError(
            f"the teacher has {teacher.num_classes} classes, config.num_classes={num_classes}, and the data name "
            "none: nothing says which of the teacher's they are"
        )
    return tuple(range(num_classes))

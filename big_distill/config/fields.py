"""Finds the fields of a config by their dotted names, for `--help` and for errors about them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from big_distill.config.checks import expected
from big_distill.config.schema import Config
from big_distill.config.values import type_of
from big_distill.errors import ConfigError, close, nearest


def fields_of(schema: Any = Config, prefix: str = "config") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yields (dotted name, field, type) of every leaf of the schema; a teacher's own config is one leaf."""
    for field in dataclasses.fields(schema):
        type_, optional = type_of(schema, field.name)
        if dataclasses.is_dataclass(type_) and not optional:
            yield from fields_of(type_, f"{prefix}.{field.name}")
        else:
            yield f"{prefix}.{field.name}", field, type_


_ALSO_CALLED = {
    "optimizer.lr": ("learning_rate", "rate"),
    "optimizer.schedule": ("scheduler", "lr_schedule"),
    "optimizer.weight_decay": ("wd",),
    "optimizer.name": ("opt", "optim"),
    "batch_size": ("bs",),
    "total_steps": ("iterations", "iters", "max_steps"),
    "num_classes": ("nb_classes",),
    "source.name": ("data", "dataset"),
    "source.path": ("data", "dataset", "data_path", "train_dir", "root"),
    "source.num_threads": ("workers", "threads"),
    "view.image_size": ("img_size", "input_size", "resolution"),
    "student.name": ("model", "arch", "network"),
    "objective.name": ("loss", "criterion"),
    "objective.temperature": ("temp", "tau"),
    "init_from": ("pretrained", "weights", "checkpoint", "ckpt"),
    "teacher.path": ("teacher_path", "teacher_checkpoint"),
    "dtype": ("precision", "amp", "fp16", "bf16"),
}


def by_common_name() -> dict[str, list[str]]:
    """Maps the bare name of every field, and what other projects call it, to dotted names: lr, learning_rate, data."""
    names: dict[str, list[str]] = {}
    for path, *_ in fields_of():
        if not path.startswith(("config.eval_source", "config.teacher.model")):
            names.setdefault(path.rpartition(".")[2], []).append(path)
    for path, others in _ALSO_CALLED.items():
        for other in others:
            names.setdefault(other, []).append(f"config.{path}")
    for part in ("student", "objective", "optimizer", "source"):  # a group is often meant by what names it
        names[part] = [f"config.{part}.name"]
    names["teacher"] = ["config.teacher.path"]
    return names


def meant(name: str) -> list[str]:
    """Finds the fields, by dotted names, that a bare name may mean; at most three."""
    known = by_common_name()
    return next((known[other][:3] for other in close(name, known)), [])


def describe_fields() -> str:
    """Describes every field at the end of `--help`: type, kind, default, allowed values and meaning."""
    lines = []
    for name, field, type_ in fields_of():
        inner = typing.get_args(type_)
        label = "config" if type_ is Config else f"{inner[0].__name__}s" if inner else type_.__name__
        default = "" if field.default in (None, ()) else f"default {field.default!r}"
        facts = "; ".join(filter(None, (label, field.metadata["kind"], default, expected(field))))
        lines.append(f"  --{name} ({facts})\n      {field.metadata['help']}")
    return "\n".join(lines)


def type_at(path: str) -> Any:
    """Finds the type of a field by its dotted name, such as config.optimizer.lr.

    Raises:
      ConfigError: the schema has no such field.
    """
    schema: Any = Config
    prefix = "config"
    for name in path.split(".")[1:]:
        if not dataclasses.is_dataclass(schema):
            raise ConfigError(f"{path}: {prefix} has no fields of its own")
        names = [f.name for f in dataclasses.fields(schema)]
        if name not in names:
            elsewhere = by_common_name().get(name) or ([] if close(name, names) else meant(name))
            near = f"; did you mean {elsewhere[0]!r}?" if elsewhere else nearest(name, names)
            raise ConfigError(f"{prefix}.{name} is not a field of the config{near}")
        schema, prefix = type_of(schema, name)[0], f"{prefix}.{name}"
    return schema

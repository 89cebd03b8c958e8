"""Finds the fields of a config by their dotted names, for `--help` and for errors about them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from big_distill.config.checks import expected
from big_distill.config.schema import Config
from big_distill.config.values import type_of
from big_distill.errors import ConfigError, nearest


def fields_of(schema: Any = Config, prefix: str = "config") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """Yields (dotted name, field, type) of every leaf of the schema; a teacher's own config is one leaf."""
    for field in dataclasses.fields(schema):
        type_, optional = type_of(schema, field.name)
        if dataclasses.is_dataclass(type_) and not optional:
            yield from fields_of(type_, f"{prefix}.{field.name}")
        else:
            yield f"{prefix}.{field.name}", field, type_


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
            elsewhere = [path for path, *_ in fields_of() if path.rpartition(".")[2] == name]
            near = f"; did you mean {elsewhere[0]!r}?" if elsewhere else nearest(name, names)
            raise ConfigError(f"{prefix}.{name} is not a field of the config{near}")
        schema, prefix = type_of(schema, name)[0], f"{prefix}.{name}"
    return schema

"""Converts frozen dataclasses from and to plain values, and says if two configs are the same run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from big_distill.config.schema import Config
from big_distill.errors import ConfigError, nearest


@functools.cache
def _hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def type_of(schema: Any, name: str) -> tuple[Any, bool]:
    """Returns (the field's type without None, True if None is allowed)."""
    hint = _hints(schema)[name]
    if typing.get_origin(hint) is types.UnionType:
        return next(a for a in typing.get_args(hint) if a is not type(None)), True
    return hint, False


def freeze(schema: Any, values: Any, prefix: str) -> Any:
    """Makes a frozen dataclass of a mapping of plain values; missing fields take their defaults.

    Raises:
      ConfigError: an unknown field, a wrong type, or a required field without a value.
    """
    names = [f.name for f in dataclasses.fields(schema)]
    if not callable(getattr(values, "get", None)):  # a dictionary or a ConfigDict has it
        raise ConfigError(f"{prefix}={values!r}: expected fields, such as {names[0]}")
    for name in list(values):
        if name not in names:
            raise ConfigError(f"{prefix}.{name} is not a field of the config{nearest(name, names)}")
    frozen: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        path, value = f"{prefix}.{field.name}", values.get(field.name, field.default)
        type_, optional = type_of(schema, field.name)
        if value is None:
            if not optional:
                raise ConfigError(f"{path} must be set: {field.metadata.get('help', 'it has no default')}")
            frozen[field.name] = None
        elif dataclasses.is_dataclass(type_):
            frozen[field.name] = freeze(type_, {} if value is field.default else value, path)
        else:
            frozen[field.name] = _checked(type_, value, path)
    return schema(**frozen)


def _checked(type_: Any, value: Any, path: str) -> Any:
    if typing.get_origin(type_) is tuple:
        of = typing.get_args(type_)[0]
        example = {int: "(3,4,6,3)", float: "(0.5,)", str: "('a','b')"}[of]
        if not isinstance(value, tuple | list) or not all(type(v) in (int, of)[of is str :] for v in value):
            raise ConfigError(f"{path}={value!r}: expected values of type {of.__name__}, such as {example}")
        return tuple(_checked(of, v, path) for v in value)
    if type(value) is int and abs(value) >= 1 << 63:  # no array holds it, and repr may refuse to print it
        raise ConfigError(f"{path}: expected {type_.__name__}, got an integer of {value.bit_length()} bits")
    if type_ is float and type(value) is int:
        return float(value)
    if type(value) is not type_:
        raise ConfigError(f"{path}={value!r}: expected {type_.__name__}, got {type(value).__name__}")
    if type_ is float and not math.isfinite(value):
        raise ConfigError(f"{path}={value}: expected a finite number")
    return value


def from_dict(values: Mapping[str, Any]) -> Config:
    """Inverts `to_dict`: reads a resolved config as a run directory keeps it."""
    return freeze(Config, values, "config")


def to_dict(config: Config) -> dict[str, Any]:
    """Converts a config to plain, JSON-ready values, with tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def leaves(config: Any, *kinds: str, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted name, value, default) of every leaf of these kinds, those of the teacher's own config too."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, *kinds, prefix=f"{prefix}{field.name}.")
        elif field.metadata["kind"] in kinds and field.name != "total_epochs":  # total_steps replaces it
            yield f"{prefix}{field.name}", value, field.default


def fingerprint(config: Config) -> str:
    """Hashes the resolved fields of maths and place, without those that have their defaults, to 12 hexadecimal digits.

    A new field therefore does not change the fingerprints of old configs. A run keeps the fingerprint that it began
    with (`run_dir.layout.read_fingerprint`), wherever its data and networks lie later.
    """
    changed = {name: value for name, value, default in leaves(config, "maths", "place") if value != default}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


def differences(before: Config, after: Config, kind: str, prefix: str = "config") -> list[str]:
    """Lists `config.field: old -> new` for every field of this kind that differs."""
    old, new = ({name: value for name, value, _ in leaves(config, kind)} for config in (before, after))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{prefix}.{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names]

"""Loads the user's own objective, model or source from `module:function`, and reads its `NAME=VALUE` options."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from big_distill.errors import ConfigError, nearest

_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def load(name: str, field: str) -> Callable[..., Any]:
    """Imports a function. An error that it raises when it is called keeps its traceback, for its author.

    Args:
      name: `module:function`, such as `my_package.losses:focal`; also in the working directory.
      field: the config field that names it, for the error.

    Raises:
      ConfigError: no such module or function.
    """
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{field}={name!r}: expected your own module:function; {error}") from error
    if not callable(function):
        raise ConfigError(f"{field}={name!r}: expected a function, got {type(function).__name__}")
    return function


def parse_options(options: Sequence[str], defaults: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Parses options, each to the type of its default. An option that is not set keeps its default.

        def focal(config):      # config.objective.name = "my_losses:focal", config.objective.options = ("gamma=3",)
            gamma = parse_options(config.options, {"gamma": 2.0}, "config.objective.options")["gamma"]

    Args:
      options: 'name=value' each, such as ('gamma=3', 'sizes=8,16').
      defaults: a bool, an integer, a float, a string or a tuple of numbers by name. An empty tuple takes floats.
      path: name of the options in the config, for errors.

    Raises:
      ConfigError: an unknown name, a name that is there twice, no '=', or a value of another type.
    """
    values = dict(defaults)
    given = set()
    for option in options:
        name, equals, text = option.partition("=")
        if name not in defaults:
            known = nearest(name, list(defaults)) if defaults else "; there are none"
            raise ConfigError(f"{path}={option!r}: {name!r} is not an option{known}")
        if not equals or name in given:
            raise ConfigError(f"{path}={option!r}: expected {name}=VALUE{' once' if equals else ''}")
        given.add(name)
        try:
            values[name] = _converted(text, defaults[name])
        except (ValueError, KeyError) as error:
            raise ConfigError(f"{path}={option!r}: expected {name}={_kind(defaults[name])}") from error
    return values


def _converted(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return _FLAGS[text.lower()]
    if isinstance(default, tuple):
        like = default[0] if default else 0.0
        return tuple(_converted(part, like) for part in text.strip("()").split(",") if part.strip())
    value = type(default)(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value


def _kind(default: Any) -> str:
    if isinstance(default, tuple):
        return "numbers, such as 1,2"
    return {bool: "True or False", int: "an integer", float: "a number"}[type(default)]

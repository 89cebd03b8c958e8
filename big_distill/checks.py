"""What a check of a config is made of: each raises one line that names the field and its value."""

from __future__ import annotations

import re
from collections.abc import Collection

from big_distill import plugins
from big_distill.config import nearest
from big_distill.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def choice(path: str, value: str | None, choices: Collection[str | None], *, or_own: bool = False) -> None:
    """Requires one of the choices, or the user's own `module:function` where that is allowed."""
    if or_own and value and ":" in value:
        plugins.load(value, path)
    elif value not in choices:
        raise ConfigError(f"{path}={value!r} is not known{nearest(str(value), list(map(str, choices)))}")


def at_least(path: str, value: float, least: float) -> None:
    """Requires a number that is not below `least`."""
    require(value >= least, f"{path}={value}: expected at least {least}")


def check_regex(path: str, pattern: str) -> None:
    """Requires a regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # the latter two: a{99999999999}, and too many brackets
        raise ConfigError(f"{path}={pattern!r} is not a regular expression: {error}") from error

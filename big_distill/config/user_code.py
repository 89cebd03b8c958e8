"""`module:function` names in a config: the user's own objective, model or source."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Any

from big_distill.errors import ConfigError


def load(name: str, field: str) -> Callable[..., Any]:
    """Imports a function; what it raises when it is called is its author's to see, traceback and all.

    Args:
      name: `module:function`, such as `my_package.losses:focal`; looked for in the working directory too.
      field: the config field it came from, for the error.

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

"""Checks each field of a config against the schema. An error is one line with the field and its value."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from big_distill.config.schema import Config, ModelConfig
from big_distill.errors import ConfigError, nearest

_OF_EVERY_MODEL = ("name", "ranks", "activation_bits", "options")


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def check_fields(values: Any, path: str) -> None:
    """Checks every field of a config, or of a part of it, against the schema.

    It does not check `teacher.config` and `init_config`, which are configs of their own. It does not check the fields
    that a user's own model reads as it likes.

    Args:
      values: a frozen dataclass of the schema.
      path: its name in the config, such as 'config'.

    Raises:
      ConfigError: the first field whose value is not allowed.
    """
    own_model = isinstance(values, ModelConfig) and ":" in (values.name or "")
    for field in dataclasses.fields(values):
        name, value = f"{path}.{field.name}", getattr(values, field.name)
        if isinstance(value, Config) or (own_model and field.name not in _OF_EVERY_MODEL):
            continue
        if dataclasses.is_dataclass(value):
            check_fields(value, name)
        elif value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                if wrong := mistake(field, one):
                    raise ConfigError(f"{name}={one!r}{wrong}")


def expected(field: dataclasses.Field[Any]) -> str:
    """Says what a field may be, such as 'one of adam, sgd' or 'at least 1'; '' for anything of its type."""
    allowed, words = field.metadata, []
    if allowed["choices"]:
        words.append(f"one of {', '.join(map(str, allowed['choices']))}")
        words += ["your own module:function"] * allowed["own_code"]
    if allowed["form"]:
        words.append(allowed["form"][1])
    elif allowed["regex"]:
        words.append("a regular expression")
    if allowed["within"]:
        opening, low, high, _ = _interval(allowed["within"])
        least = f"at least {low}" if opening == "[" else f"a number above {low}"
        words.append(least if high == "inf" else f"a number in {allowed['within']}")
    return ", or ".join(words)


def mistake(field: dataclasses.Field[Any], value: Any) -> str:
    """Says what is wrong with one value of a field, to follow 'config.field=value'; '' if nothing is."""
    allowed = field.metadata
    choices, form = allowed["choices"], allowed["form"]
    if allowed["own_code"] and ":" in value:
        return ""
    if (choices or form) and not (value in choices or (form and re.fullmatch(form[0], value))):
        if choices and isinstance(value, str):
            return f" is not known{nearest(value, [*choices, *form[1:]] if form else choices)}"
        return f": expected {expected(field)}"
    if allowed["within"] and not _is_within(value, allowed["within"]):
        return f": expected {expected(field)}"
    return regex_mistake(value.rpartition("=")[0] if form else value) if allowed["regex"] else ""


def regex_mistake(pattern: str) -> str:
    """Says why a text is not a regular expression, to follow it as in `mistake`; '' if it is one."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:  # the last two: a{99999999999}, and too many brackets
        return f" is not a regular expression: {error}"
    return ""


def _interval(text: str) -> tuple[str, str, str, str]:
    """Splits an interval into (opening bracket, least, greatest, closing bracket)."""
    low, high = text[1:-1].split(", ")
    return text[0], low, high, text[-1]


def _is_within(value: float, text: str) -> bool:
    opening, low, high, closing = _interval(text)
    above = value >= float(low) if opening == "[" else value > float(low)
    return above and (value <= float(high) if closing == "]" else value < float(high))

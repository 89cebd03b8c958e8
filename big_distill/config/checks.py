"""What a check of a config is made of: each raises one line that names the field and its value."""

from __future__ import annotations

import re
from collections.abc import Collection

from big_distill.config import user_code
from big_distill.config.schema import Config, SourceConfig
from big_distill.errors import ConfigError, nearest


def require(condition: bool, message: str) -> None:
    """Raises ConfigError with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def choice(path: str, value: str | None, choices: Collection[str | None], *, or_own: bool = False) -> None:
    """Requires one of the choices, or the user's own `module:function` where that is allowed."""
    if or_own and value and ":" in value:
        user_code.load(value, path)
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


def check_numbers(config: Config, prefix: str) -> None:
    """What holds of a config's numbers wherever it is run.

    Raises:
      ConfigError: one of them cannot be.
    """
    source, optimizer = config.source, config.optimizer
    at_least(f"{prefix}.num_classes", config.num_classes, 2)
    require(bool(source.name), f"{prefix}.source.name must be set: digits, a TFDS set, folder or your own")
    for name in ("batch_size", "accumulate_steps", "steps_per_dispatch", "log_every_steps", "keep_latest"):
        at_least(f"{prefix}.{name}", getattr(config, name), 1)
    for name in ("seed", "total_steps", "total_epochs", "eval_every_steps", "checkpoint_every_steps", "keep_best"):
        at_least(f"{prefix}.{name}", getattr(config, name), 0)
    at_least(f"{prefix}.profile_at_step", config.profile_at_step, 0)
    at_least(f"{prefix}.source.num_train_examples", source.num_train_examples, 1)
    for name in ("source", "eval_source"):
        _check_reading(getattr(config, name), f"{prefix}.{name}")
    require(
        not config.eval_source.resident,
        f"{prefix}.eval_source.resident=True: only the training split, {prefix}.source, can be resident",
    )
    at_least(f"{prefix}.grace_seconds", config.grace_seconds, 0)
    for name in ("lr", "weight_decay", "clip_norm", "max_skipped_steps"):
        at_least(f"{prefix}.optimizer.{name}", getattr(optimizer, name), 0)
    check_regex(f"{prefix}.optimizer.decay_mask", optimizer.decay_mask)
    check_regex(f"{prefix}.init_fresh", config.init_fresh or "")
    require(
        config.init_fresh is None or bool(config.init_from or config.init_config),
        f"{prefix}.init_fresh={config.init_fresh!r} needs {prefix}.init_from",
    )
    for name in ("momentum", "b1", "b2"):
        value = getattr(optimizer, name)
        require(0 <= value < 1, f"{prefix}.optimizer.{name}={value}: expected a number in [0, 1)")
    at_least(f"{prefix}.mesh.fsdp", config.mesh.fsdp, 1)
    at_least(f"{prefix}.view.image_size", config.view.image_size, 1)
    channels = config.view.channels
    require(channels in (1, 3), f"{prefix}.view.channels={channels}: expected 1 or 3")


def _check_reading(source: SourceConfig, path: str) -> None:
    for name in ("num_threads", "prefetch"):
        at_least(f"{path}.{name}", getattr(source, name), 1)
    at_least(f"{path}.cache_bytes", source.cache_bytes, 0)
    bad = source.max_bad_fraction
    require(0 <= bad <= 1, f"{path}.max_bad_fraction={bad}: expected a number in [0, 1]")

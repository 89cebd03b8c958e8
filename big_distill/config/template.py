"""Serves config files: makes the template they assign to, loads another one, reads arguments, shrinks to `:smoke`."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import types
from typing import Any

from ml_collections import ConfigDict, config_dict

from big_distill.config import (
    OWN_TEACHER,
    CompressConfig,
    Config,
    ModelConfig,
    ObjectiveConfig,
    SourceConfig,
    TeacherConfig,
)
from big_distill.config.values import type_of
from big_distill.errors import ConfigError, close, nearest


def template() -> ConfigDict:
    """Makes a complete, locked `ConfigDict` with the schema's defaults. A config file assigns to it."""
    return _template(Config).lock()


def _template(schema: Any) -> ConfigDict:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        type_, optional = type_of(schema, field.name)
        if dataclasses.is_dataclass(type_):
            values[field.name] = config_dict.placeholder(ConfigDict) if optional else _template(type_)
        elif field.default is None:
            values[field.name] = config_dict.placeholder(type_)
        else:
            values[field.name] = field.default
    return ConfigDict(values)


def load_config(path: str | pathlib.Path, arg: str = "") -> ConfigDict:
    """Calls `get_config(arg)` of a config file, so that one builds on another, as mnist_kd on mnist_teacher."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise ConfigError(f"config file {path} does not exist{_near_files(path, arg)}")
    spec = importlib.util.spec_from_file_location(f"big_distill_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"config file {path}: expected a Python program, *.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def _near_files(path: pathlib.Path, arg: str) -> str:
    """Names the config file that a path, or a bare name, may mean: one beside it, in configs/ or in the checkout."""
    checkout = pathlib.Path(__file__).parents[2] / "configs"
    folders = checkout, pathlib.Path("configs"), path.parent
    files = {file.stem: str(file) for folder in folders for file in sorted(folder.glob("*.py"))}
    if found := close(path.stem, files):
        return f"; did you mean {f'{files[found[0]]}:{arg}'.rstrip(':')!r}?"
    return nearest(str(path), sorted(files.values())) if files else ""


def parse_arg(arg: str | None, **defaults: str | bool) -> types.SimpleNamespace:
    """Parses the text after the colon of `--config=FILE:variant=long,smoke`.

    Args:
      arg: comma-separated `name=value`, or `name` alone for a switch.
      **defaults: the known names: a bool is a switch, a string lists its choices, the default first:
      'medium|fast|long'.
    """
    values: dict[str, Any] = {k: v.split("|")[0] if isinstance(v, str) else v for k, v in defaults.items()}
    for part in filter(None, (arg or "").split(",")):
        name, _, value = part.partition("=")
        if name not in defaults:
            choices = [f"{key}={value}" for key, d in defaults.items() if isinstance(d, str) for value in d.split("|")]
            full = [choice for choice in choices if choice.endswith(f"={name}")]
            near = f"; did you mean ':{full[0]}'?" if full else nearest(name, list(defaults))
            raise ConfigError(f"the config has no argument :{name}{near}")
        default = defaults[name]
        if isinstance(default, str):
            if value not in default.split("|"):
                raise ConfigError(f"config argument :{name}={value}{nearest(value, default.split('|'))}")
            values[name] = value
        elif value.lower() in ("", "true", "1", "false", "0"):
            values[name] = value.lower() in ("", "true", "1")
        else:
            raise ConfigError(f"config argument :{name}={value}: expected {name}, {name}=true or {name}=false")
    return types.SimpleNamespace(**values)


def copied(config: ConfigDict) -> ConfigDict:
    """Copies a config, locked, so that it does not follow the old one. Unset fields keep their types for flags."""
    values = config.to_dict()
    del values["teacher"]["config"], values["init_config"]
    copy = _template(Config)
    copy.update(values)
    copy.teacher.config = config.teacher.config and copied(config.teacher.config)
    copy.init_config = config.init_config and copied(config.init_config)
    return copy.lock()


def teacher_of(config: ConfigDict, **source: Any) -> ConfigDict:
    """Copies a config to make the teacher's of it, on the student's data (see `with_data_of`)."""
    return with_data_of(copied(config), config, **source)


def with_data_of(teacher: ConfigDict, config: ConfigDict, **source: Any) -> ConfigDict:
    """Puts a config on the data of another one, even if those are set later. Fields that are set here stay here.

    `source` sets fields of its own.
    """
    teacher.num_classes = config.get_oneway_ref("num_classes")
    for name in ("channels", "fit"):
        teacher.view[name] = config.view.get_oneway_ref(name)
    for name in teacher.source:
        teacher.source[name] = source[name] if name in source else config.source.get_oneway_ref(name)
    return teacher


_NUM_STAGES = {"bit": 2, "mobilenet_v3_large": 6} | {f"efficientnet_lite{i}": 7 for i in range(3)}


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks a config to random pixels and a two-step teacher. It runs anywhere, offline, in a minute."""
    small = copied(config).unlock()
    small.update(total_steps=20, total_epochs=0.0, batch_size=8, accumulate_steps=1)
    own = config.init_from == OWN_TEACHER
    small.update(init_from=OWN_TEACHER if own else None, init_fresh=None)
    small.update(log_every_steps=5, eval_every_steps=10, checkpoint_every_steps=0)
    small.steps_per_dispatch = min(2, config.steps_per_dispatch)
    small.optimizer.warmup_steps = 2
    if small.optimizer.schedule == "staircase":
        small.optimizer.boundaries = (10, 15)
    validation = "validation" if config.source.validation else None
    small.source.update(name="random", path=None, train="train", validation=validation, num_train_examples=64)
    small.source.update(test="test", options=())
    small.eval_source = _template(SourceConfig)
    if small.student.name in _NUM_STAGES:
        small.student.update(depth=0, blocks=(1,) * _NUM_STAGES[small.student.name], width=0.125, features=())
    small.student.features = tuple(min(8, units) for units in small.student.features)
    if config.init_config:
        small.init_config = _two_steps(with_data_of(smoke(config.init_config), small))
    elif config.init_from and not own:
        small.compress = _template(CompressConfig)  # it shares the weights of a network that is not there
    if (config.teacher.path or config.teacher.config) and config.teacher.path != OWN_TEACHER:
        teacher = smoke(config.teacher.config) if config.teacher.config else _supervised(small)
        small.teacher.path, small.teacher.model = None, _template(ModelConfig)
        small.teacher.update(image_size=(), input_mean=(), input_std=(), min_accuracy=0.0)
        small.teacher.config = _two_steps(with_data_of(teacher, small))
    return small.lock()


def _two_steps(config: ConfigDict) -> ConfigDict:
    config.unlock().update(total_steps=2, eval_every_steps=2)
    config.optimizer.update(schedule="constant", warmup_steps=0, boundaries=())
    return config


def _supervised(config: ConfigDict) -> ConfigDict:
    """Copies the config, to train on labels alone."""
    teacher = copied(config).unlock()
    teacher.teacher = _template(TeacherConfig)
    teacher.compress = _template(CompressConfig)
    teacher.init_config = None
    teacher.objective = _template(ObjectiveConfig)
    teacher.objective.name = "cross_entropy"
    teacher.view.regime = "consistent"
    return teacher

"""The schema of a run: frozen dataclasses, every field known and marked.

A config file assigns to `template()`, a complete and locked `ConfigDict`, so that a typo fails at once;
`resolve.resolve` checks the whole and returns the frozen `Config` that everything else reads. A field is one of

* **maths**: it changes what is computed. A resumed run refuses another value; the fingerprint hashes these fields
  alone.
* **numerics**: it changes rounding only. A resumed run says that it is no longer bit-exact and goes on.
* **cosmetic**: it changes what is printed, kept or how fast data arrives.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import json
import pathlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from big_distill.errors import ConfigError


def _marked(kind: str, default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": meaning})


maths = functools.partial(_marked, "maths")
numerics = functools.partial(_marked, "numerics")
cosmetic = functools.partial(_marked, "cosmetic")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An architecture. A family reads only some of the fields (`resolve.MODELS`); setting another is an error."""

    name: str | None = maths(None, "mlp, lenet5, cnn, six_layer_cnn, bit, or your own module:function")
    features: tuple[int, ...] = maths((), "mlp: units of each hidden layer; cnn: channels of its two convolutions")
    depth: int = maths(0, "bit: 26, 50, 101 or 152; 0: blocks says")
    blocks: tuple[int, ...] = maths((), "bit: units in each stage, such as (1,1,1,1), instead of depth")
    width: float = maths(1.0, "bit: width factor, fractions allowed")
    root_pool: str = maths("-inf", "bit: the root's max-pool pads with '-inf' (distillation release) or 'zero' (BiT)")


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Where the teacher comes from: nowhere (supervised run), `path`, or `config`; `path` wins."""

    path: str | None = maths(
        None, "a run directory or a weight file (.npz); several, separated by commas, are averaged; wins over config"
    )
    config: Config | None = maths(None, "a config that is trained first, inside this run's directory (teacher/)")
    model: ModelConfig = maths(ModelConfig(), "the architecture of a weight file without a card")
    mean: str = maths("logits", "several teachers are averaged as 'logits' or as 'probabilities'")


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What the student minimises."""

    name: str = maths(
        "function_matching",
        "function_matching, hinton, logit_regression, cross_entropy, or your own module:function",
    )
    temperature: float = maths(1.0, "function_matching, hinton: T of softmax(logits / T)")
    alpha: float = maths(0.9, "hinton: weight of the soft term; the labels weigh 1 - alpha")
    scale_soft_by_t2: bool = maths(False, "hinton: multiply the soft term by T^2, so that it does not vanish at high T")


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """What the models see of an image."""

    image_size: int = maths(None, "side of the square view in pixels")
    channels: int = maths(3, "3 (colour) or 1 (grey)")
    regime: str = maths("consistent", "fixed, independent, consistent or function_matching: who sees what")
    mixup: float | None = maths(None, "lambda ~ Beta(mixup, mixup); unset: 1 under function_matching, else 0")
    crop: str = maths("inception", "inception (random area and aspect) or central (no augmentation)")
    area_min: float = maths(0.05, "inception: least share of the image's area")
    area_max: float = maths(1.0, "inception: greatest share of the image's area")
    flip: bool = maths(True, "flip half of the training images left to right")
    resize: int = maths(0, "central crops (evaluation): the shorter side before cropping image_size; 0: image_size")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where images and labels come from."""

    name: str = maths(None, "digits, random, folder, a TFDS set such as oxford_flowers102, or your own module:function")
    path: str | None = maths(None, "folder: its directory, one sub-folder a class, or flat and unlabelled")
    train: str = maths("train", "split to train on, in TFDS syntax, such as train[:90%]")
    validation: str | None = maths(None, "split on which the best checkpoint is chosen; unset: the latest is kept")
    test: str | None = maths("test", "split that the closing table reports")
    num_train_examples: int = maths(None, "size of the training split; checked against the data")
    data_dir: str | None = cosmetic(None, "where TFDS sets are; unset: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    cache_bytes: int = cosmetic(4 << 30, "splits that decode to no more than this are decoded once and kept in memory")
    num_threads: int = cosmetic(2, "threads that make batches")
    prefetch: int = cosmetic(4, "batches made ahead")
    max_bad_fraction: float = cosmetic(0.01, "stop when more than this share of a split's images cannot be read")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule."""

    name: str = maths("adam", "adam or sgd")
    lr: float = maths(1e-3, "peak learning rate")
    momentum: float = maths(0.9, "sgd: momentum")
    b1: float = maths(0.9, "adam: decay of the first moment")
    b2: float = maths(0.999, "adam: decay of the second moment")
    mu_dtype: str = maths("bfloat16", "adam: dtype of the first moment, bfloat16 or float32")
    clip_norm: float = maths(1.0, "clip the global gradient norm, before the optimiser; 0: no clipping")
    weight_decay: float = maths(0.0, "decoupled weight decay")
    decay_mask: str = maths(".*/kernel", "regular expression: full paths of the parameters that decay")
    decay_scaled_by_lr: bool = maths(
        False, "decay by schedule * lr * weight_decay (AdamW), not schedule * weight_decay"
    )
    schedule: str = maths("cosine", "cosine, constant, staircase (a tenth at each of boundaries) or bit_hyperrule")
    warmup_steps: int = maths(0, "linear warm-up; 0: none, or the BiT-HyperRule's")
    boundaries: tuple[int, ...] = maths((), "staircase: steps at which the rate falls to a tenth")


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a student trained against an objective."""

    seed: int = maths(0, "seed of everything random: parameters, order, crops, mixup")
    num_classes: int = maths(None, "number of classes; checked against the data and the teacher")
    batch_size: int = maths(None, "global batch size, over all devices and processes")
    accumulate_steps: int = maths(1, "split the global batch into this many parts and add up their gradients")
    total_steps: int = maths(0, "length of the run in optimiser steps; when set it wins over total_epochs")
    total_epochs: float = maths(0.0, "length of the run in passes over the training split")
    init_from: str | None = maths(None, "start from the student of this run directory or weight file")
    student: ModelConfig = maths(ModelConfig(), "the network that is trained")
    teacher: TeacherConfig = maths(TeacherConfig(), "the network that is matched")
    objective: ObjectiveConfig = maths(ObjectiveConfig(), "the loss")
    view: ViewConfig = maths(ViewConfig(), "crops, mixup and regime")
    source: SourceConfig = maths(SourceConfig(), "the data")
    optimizer: OptimizerConfig = maths(OptimizerConfig(), "the update")
    dtype: str = numerics("auto", "dtype of activations: float32, bfloat16, or auto: bfloat16 on TPU and GPU")
    log_every_steps: int = cosmetic(50, "write training metrics this often")
    eval_every_steps: int = cosmetic(0, "evaluate this often; 0: ten times a run")
    checkpoint_every_steps: int = cosmetic(0, "save this often; 0: with every evaluation")
    keep_latest: int = cosmetic(2, "how many of the newest checkpoints are kept")
    keep_best: int = cosmetic(1, "how many of the best on the validation split are kept")
    profile_at_step: int = cosmetic(0, "write a profiler trace of 5 steps from here to the run directory; 0: none")


# ----------------------------------------------------------------------------------------------------------------------
# The schema as a ConfigDict, and in words


def template() -> ConfigDict:
    """A complete, locked `ConfigDict` with the schema's defaults: what a config file assigns to."""
    return _template(Config).lock()


def _template(schema: type) -> ConfigDict:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        type_, optional = _type_of(schema, field.name)
        if dataclasses.is_dataclass(type_):
            values[field.name] = config_dict.placeholder(ConfigDict) if optional else _template(_as_type(type_))
        elif field.default is None:
            values[field.name] = config_dict.placeholder(type_)
        else:
            values[field.name] = field.default
    return ConfigDict(values)


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


def _as_type(value: Any) -> type:
    return typing.cast(type, value)


def _type_of(schema: type, name: str) -> tuple[Any, bool]:
    """(the field's type without None, whether None is allowed)."""
    hint = _hints(schema)[name]
    if typing.get_origin(hint) is types.UnionType:
        return next(a for a in typing.get_args(hint) if a is not type(None)), True
    return hint, False


def fields_of(schema: type = Config, prefix: str = "config") -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    """(dotted name, field, type) of every leaf of the schema; a teacher's own config is one leaf."""
    for field in dataclasses.fields(schema):
        type_, optional = _type_of(schema, field.name)
        if dataclasses.is_dataclass(type_) and not optional:
            yield from fields_of(_as_type(type_), f"{prefix}.{field.name}")
        else:
            yield f"{prefix}.{field.name}", field, type_


def describe_fields() -> str:
    """Every field with its type, kind, default and meaning: the closing part of `--help`."""
    lines = []
    for name, field, type_ in fields_of():
        label = "config" if type_ is Config else "integers" if typing.get_origin(type_) else type_.__name__
        default = "" if field.default in (None, ()) else f"; default {field.default!r}"
        lines.append(f"  --{name} ({label}; {field.metadata['kind']}{default})\n      {field.metadata['help']}")
    return "\n".join(lines)


def nearest(name: str, names: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or the choices when nothing is near."""
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(names)}"


def check_path(path: str) -> None:
    """Raises ConfigError unless `path`, such as config.optimizer.lr, is a field of the schema."""
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
        schema, prefix = _type_of(_as_type(schema), name)[0], f"{prefix}.{name}"


# ----------------------------------------------------------------------------------------------------------------------
# What config files call


def load_config(path: str | pathlib.Path, arg: str = "") -> ConfigDict:
    """`get_config(arg)` of a config file: how one config builds on another, as mnist_kd on mnist_teacher."""
    path = pathlib.Path(path)
    if not path.is_file():
        there = sorted(str(file) for file in path.parent.glob("*.py"))
        raise ConfigError(f"config file {path} does not exist{nearest(str(path), there) if there else ''}")
    spec = importlib.util.spec_from_file_location(f"big_distill_config_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def parse_arg(arg: str | None, **defaults: str | bool) -> types.SimpleNamespace:
    """Reads what stands behind the colon of `--config=FILE:variant=long,smoke`.

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


def teacher_of(config: ConfigDict) -> ConfigDict:
    """A copy of a config to make the teacher's from; its data are the student's, whatever they are set to later."""
    teacher = config.copy_and_resolve_references()
    teacher.num_classes = config.get_ref("num_classes")
    teacher.view.channels = config.view.get_ref("channels")
    for name in teacher.source:
        teacher.source[name] = config.source.get_ref(name)
    return teacher


def smoke(config: ConfigDict) -> ConfigDict:
    """The same config shrunk, on random pixels and with a two-step teacher: runs anywhere, offline, in a minute."""
    small = config.copy_and_resolve_references().unlock()
    small.update(total_steps=20, total_epochs=0.0, batch_size=8, accumulate_steps=1, init_from=None)
    small.update(log_every_steps=5, eval_every_steps=10, checkpoint_every_steps=0)
    small.optimizer.warmup_steps = 2
    if small.optimizer.schedule == "staircase":
        small.optimizer.boundaries = (10, 15)
    validation = "validation" if config.source.validation else None
    small.source.update(name="random", path=None, train="train", validation=validation, num_train_examples=64)
    small.source.test = "test"
    if small.student.name == "bit":
        small.student.update(depth=0, blocks=(1, 1, 1, 1), width=0.125)
    small.student.features = tuple(min(8, units) for units in small.student.features)
    if config.teacher.path or config.teacher.config:
        teacher = smoke(config.teacher.config) if config.teacher.config else _supervised(small)
        teacher.unlock().update(total_steps=2, eval_every_steps=2)
        teacher.optimizer.update(schedule="constant", warmup_steps=0, boundaries=())
        small.teacher.update(path=None, model=_template(ModelConfig))
        small.teacher.config = teacher
    return small.lock()


def _supervised(config: ConfigDict) -> ConfigDict:
    """The same run on labels alone."""
    teacher = config.copy_and_resolve_references().unlock()
    teacher.teacher = _template(TeacherConfig)
    teacher.objective = _template(ObjectiveConfig)
    teacher.objective.name = "cross_entropy"
    teacher.view.regime = "consistent"
    return teacher


# ----------------------------------------------------------------------------------------------------------------------
# Frozen dataclasses from and to plain values, and their identity


def freeze(schema: type, values: Any, prefix: str) -> Any:
    """A frozen dataclass from a mapping of plain values; missing fields take their defaults.

    Raises:
      ConfigError: an unknown field, a wrong type, or a required field without a value.
    """
    names = [f.name for f in dataclasses.fields(schema)]
    for name in list(values):
        if name not in names:
            raise ConfigError(f"{prefix}.{name} is not a field of the config{nearest(name, names)}")
    frozen: dict[str, Any] = {}
    for field in dataclasses.fields(schema):
        path, value = f"{prefix}.{field.name}", values.get(field.name, field.default)
        type_, optional = _type_of(schema, field.name)
        if value is None:
            if not optional:
                raise ConfigError(f"{path} must be set: {field.metadata['help']}")
            frozen[field.name] = None
        elif dataclasses.is_dataclass(type_):
            frozen[field.name] = value if isinstance(value, _as_type(type_)) else freeze(_as_type(type_), value, path)
        else:
            frozen[field.name] = _checked(type_, value, path)
    return schema(**frozen)


def _checked(type_: Any, value: Any, path: str) -> Any:
    if typing.get_origin(type_) is tuple:
        if not isinstance(value, tuple | list) or not all(type(v) is int for v in value):
            raise ConfigError(f"{path}={value!r}: expected integers, such as (3,4,6,3)")
        return tuple(value)
    if type_ is float and type(value) is int:
        return float(value)
    if type(value) is not type_:
        raise ConfigError(f"{path}={value!r}: expected {type_.__name__}, got {type(value).__name__}")
    return value


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`: a resolved config as a run directory keeps it."""
    return freeze(Config, values, "config")


def to_dict(config: Config) -> dict[str, Any]:
    """Plain, JSON-ready values; tuples as lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _leaves(config: Any, kind: str, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, value, default) of every leaf of one kind, the teacher's own config included."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, kind, f"{prefix}{field.name}.")
        elif field.metadata["kind"] == kind and field.name != "total_epochs":  # total_steps says it
            yield f"{prefix}{field.name}", value, field.default


def fingerprint(config: Config) -> str:
    """12 hexadecimal digits of a hash of the resolved maths fields, without those that have the schema's defaults.

    So a new field leaves the fingerprints of old configs as they were.
    """
    changed = {name: value for name, value, default in _leaves(config, "maths") if value != default}
    return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:12]


def differences(before: Config, after: Config, kind: str, prefix: str = "config") -> list[str]:
    """`config.field: old -> new` for every field of this kind that differs."""
    old, new = ({name: value for name, value, _ in _leaves(config, kind)} for config in (before, after))
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{prefix}.{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names]

"""Checks a config as a whole and fills in what follows from it, before any data is touched."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection

from ml_collections import ConfigDict

from big_distill import plugins
from big_distill.config import Config, ModelConfig, ObjectiveConfig, SourceConfig, ViewConfig, freeze, nearest
from big_distill.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models.

    fields: of `ModelConfig`, those it reads.
    min_image_size: in pixels.
    num_stages: 0: any.
    int8: whether it has convolutions that a teacher may compute in integers.
    """

    fields: tuple[str, ...]
    min_image_size: int
    num_stages: int = 0
    int8: bool = False


MODELS = {
    "mlp": Family(("features",), 1),
    "lenet5": Family((), 16),
    "cnn": Family(("features",), 4),
    "six_layer_cnn": Family((), 4),
    "bit": Family(("depth", "blocks", "width", "root_pool"), 4, int8=True),  # doubled by every stage after the first
    "efficientnet_lite0": Family(("blocks", "width", "padding"), 32, 7, int8=True),
    "efficientnet_lite1": Family(("blocks", "width", "padding"), 32, 7, int8=True),
    "efficientnet_lite2": Family(("blocks", "width", "padding"), 32, 7, int8=True),
    "mobilenet_v3_large": Family(("blocks", "width", "norm", "padding"), 32, 6, int8=True),
    "vit_small": Family(("patch_size",), 1),  # a multiple of the patch
    "vit_base": Family(("patch_size",), 1),
}
BIT_BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
OBJECTIVES = {  # what each reads
    "function_matching": ("teacher",),
    "hinton": ("teacher", "labels"),
    "logit_regression": ("teacher",),
    "cross_entropy": ("labels",),
}
REGIMES = ("fixed", "independent", "consistent", "function_matching")
SCHEDULES = ("cosine", "constant", "staircase", "bit_hyperrule")


def resolve(config: ConfigDict, num_devices: int, platform: str) -> Config:
    """Checks a config and fills in what follows from it; touches no data.

    Args:
      config: what a config file returned, with the command line's overrides.
      num_devices: over all processes.
      platform: 'cpu', 'gpu' or 'tpu'.

    Returns:
      The frozen Config: durations in steps, dtype, warm-up, mixup and intervals set.

    Raises:
      ConfigError: one line with the field, its value and what was expected.
    """
    return _resolve(freeze(Config, config, "config"), num_devices, platform, "config")


def _resolve(config: Config, num_devices: int, platform: str, prefix: str) -> Config:
    if config.teacher.path:
        config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, config=None))
    if config.init_from:
        config = dataclasses.replace(config, init_config=None)
    _check_numbers(config, num_devices, prefix)
    if ":" in config.source.name:
        plugins.load(config.source.name, f"{prefix}.source.name")
    view = _resolve_view(config, prefix)
    eval_source = _resolve_eval_source(config, prefix)
    _check_model(config.student, view.size_for_student, f"{prefix}.student")
    if config.teacher.path and config.teacher.model.name is not None:
        size = config.teacher.image_size[0] if config.teacher.image_size else view.image_size
        _check_model(config.teacher.model, size, f"{prefix}.teacher.model")
    _check_teacher(config, prefix)
    _check_compress(config, prefix)
    _require(
        "," not in (config.init_from or ""), f"{prefix}.init_from={config.init_from!r}: a run starts from one network"
    )
    _check_objective(config, prefix)
    total_steps, warmup_steps, boundaries = _durations(config, prefix)
    _choice(f"{prefix}.optimizer.name", config.optimizer.name, ("adam", "sgd"))
    _choice(f"{prefix}.optimizer.mu_dtype", config.optimizer.mu_dtype, ("float32", "bfloat16"))
    _choice(f"{prefix}.dtype", config.dtype, ("auto", "float32", "bfloat16"))
    _choice(f"{prefix}.teacher.dtype", config.teacher.dtype, ("auto", "float32", "bfloat16", "int8"))
    dtype = {"cpu": "float32"}.get(platform, "bfloat16") if config.dtype == "auto" else config.dtype
    teacher = dataclasses.replace(config.teacher, dtype=dtype) if config.teacher.dtype == "auto" else config.teacher
    if teacher.config is not None:
        nested = dataclasses.replace(teacher.config, source=_located(teacher.config.source, config.source))
        teacher = dataclasses.replace(
            teacher, config=_resolve(nested, num_devices, platform, f"{prefix}.teacher.config")
        )
    init_config = config.init_config
    if init_config is not None:
        init_config = dataclasses.replace(init_config, source=_located(init_config.source, config.source))
        init_config = _resolve(init_config, num_devices, platform, f"{prefix}.init_config")
        for field in dataclasses.fields(ModelConfig):
            theirs, ours = getattr(init_config.student, field.name), getattr(config.student, field.name)
            _require(
                theirs == ours,
                f"{prefix}.init_config.student.{field.name}={theirs!r} differs from {prefix}.student.{field.name}="
                f"{ours!r}: both stages are of one network",
            )
    eval_every_steps = config.eval_every_steps or max(1, total_steps // 10)
    return dataclasses.replace(
        config,
        total_steps=total_steps,
        teacher=teacher,
        init_config=init_config,
        view=view,
        eval_source=eval_source,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup_steps, boundaries=boundaries),
        dtype=dtype,
        eval_every_steps=eval_every_steps,
        checkpoint_every_steps=config.checkpoint_every_steps or eval_every_steps,
    )


def needs_labels(objective: ObjectiveConfig) -> bool:
    """Whether an objective cannot do without labels; of your own it is not known."""
    reads = OBJECTIVES.get(objective.name, ())
    return "labels" in reads and not ("teacher" in reads and objective.alpha == 1)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _choice(path: str, value: str | None, choices: Collection[str | None], *, or_own: bool = False) -> None:
    """Requires one of the choices, or the user's own `module:function` where that is allowed."""
    if or_own and value and ":" in value:
        plugins.load(value, path)
    elif value not in choices:
        raise ConfigError(f"{path}={value!r} is not known{nearest(str(value), list(map(str, choices)))}")


def _at_least(path: str, value: float, least: float) -> None:
    _require(math.isfinite(value), f"{path}={value}: expected a finite number")
    _require(value >= least, f"{path}={value}: expected at least {least}")


def _check_numbers(config: Config, num_devices: int, prefix: str) -> None:
    source, optimizer = config.source, config.optimizer
    _at_least(f"{prefix}.num_classes", config.num_classes, 2)
    _require(bool(source.name), f"{prefix}.source.name must be set: digits, a TFDS set, folder or your own")
    for name in ("batch_size", "accumulate_steps", "log_every_steps", "keep_latest"):
        _at_least(f"{prefix}.{name}", getattr(config, name), 1)
    for name in ("seed", "total_steps", "total_epochs", "eval_every_steps", "checkpoint_every_steps", "keep_best"):
        _at_least(f"{prefix}.{name}", getattr(config, name), 0)
    _at_least(f"{prefix}.profile_at_step", config.profile_at_step, 0)
    _at_least(f"{prefix}.source.num_train_examples", source.num_train_examples, 1)
    for name in ("source", "eval_source"):
        _check_reading(getattr(config, name), f"{prefix}.{name}")
    for name in ("lr", "weight_decay", "clip_norm"):
        _at_least(f"{prefix}.optimizer.{name}", getattr(optimizer, name), 0)
    _check_regex(f"{prefix}.optimizer.decay_mask", optimizer.decay_mask)
    _check_regex(f"{prefix}.init_fresh", config.init_fresh or "")
    _require(
        config.init_fresh is None or bool(config.init_from or config.init_config),
        f"{prefix}.init_fresh={config.init_fresh!r} needs {prefix}.init_from",
    )
    for name in ("momentum", "b1", "b2"):
        value = getattr(optimizer, name)
        _require(0 <= value < 1, f"{prefix}.optimizer.{name}={value}: expected a number in [0, 1)")
    _require(
        config.batch_size % (config.accumulate_steps * num_devices) == 0,
        f"{prefix}.batch_size={config.batch_size} is not divisible by {num_devices} devices x "
        f"accumulate_steps={config.accumulate_steps}",
    )


def _check_reading(source: SourceConfig, path: str) -> None:
    for name in ("num_threads", "prefetch"):
        _at_least(f"{path}.{name}", getattr(source, name), 1)
    _at_least(f"{path}.cache_bytes", source.cache_bytes, 0)
    bad = source.max_bad_fraction
    _require(0 <= bad <= 1, f"{path}.max_bad_fraction={bad}: expected a number in [0, 1]")


def _check_regex(path: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"{path}={pattern!r} is not a regular expression: {error}") from error


def _check_objective(config: Config, prefix: str) -> None:
    objective, teacher, nested = config.objective, config.teacher, config.teacher.config
    _choice(f"{prefix}.objective.name", objective.name, OBJECTIVES, or_own=True)
    temperature, alpha = objective.temperature, objective.alpha
    _require(temperature > 0, f"{prefix}.objective.temperature={temperature}: expected a number above 0")
    _require(0 <= alpha <= 1, f"{prefix}.objective.alpha={alpha}: expected a number in [0, 1]")
    smoothing = objective.label_smoothing
    _require(0 <= smoothing < 1, f"{prefix}.objective.label_smoothing={smoothing}: expected a number in [0, 1)")
    if teacher.path and not all(path.strip() for path in teacher.path.split(",")):
        raise ConfigError(f"{prefix}.teacher.path={teacher.path!r}: one of the names is empty")
    _choice(f"{prefix}.teacher.mean", teacher.mean, ("logits", "probabilities"))
    reads = OBJECTIVES.get(objective.name)
    if reads and "teacher" not in reads:
        _require(
            not _distilled(config),
            f"{prefix}.objective.name={objective.name!r} reads no teacher: unset {prefix}.teacher",
        )
    elif reads:
        _require(
            _distilled(config),
            f"{prefix}.objective.name={objective.name!r} needs a teacher: set {prefix}.teacher.path or "
            f"{prefix}.teacher.config, or train on labels with 'cross_entropy'",
        )
    _require(
        teacher.model.name is None or bool(teacher.path),
        f"{prefix}.teacher.model.name={teacher.model.name!r} declares a weight file: set {prefix}.teacher.path too",
    )
    if nested is None:
        return
    for name, theirs, ours in (
        ("num_classes", nested.num_classes, config.num_classes),
        ("view.channels", nested.view.channels, config.view.channels),
    ):
        _require(
            theirs == ours, f"{prefix}.teacher.config.{name}={theirs} differs from the student's {prefix}.{name}={ours}"
        )
    theirs, ours = nested.view.size_for_student, config.view.image_size
    _require(
        theirs <= ours,
        f"{prefix}.view.image_size={ours} is smaller than {prefix}.teacher.config.view.image_size={theirs}: "
        "a view is as large as the largest network needs",
    )


def _check_teacher(config: Config, prefix: str) -> None:
    teacher, path = config.teacher, f"{prefix}.teacher"
    _require(0 <= teacher.min_accuracy <= 1, f"{path}.min_accuracy={teacher.min_accuracy}: expected a share in [0, 1]")
    _at_least(f"{path}.max_fold_kl", teacher.max_fold_kl, 0)
    channels = config.view.channels
    for name in ("input_mean", "input_std"):
        values = getattr(teacher, name)
        _require(len(values) in (0, 1, channels), f"{path}.{name}={values}: expected one value, or {channels}")
    _require(min((*teacher.input_std, 1)) > 0, f"{path}.input_std={teacher.input_std}: expected numbers above 0")
    _require(min((*teacher.image_size, 1)) == 1, f"{path}.image_size={teacher.image_size}: expected positive sizes")
    nested = teacher.config and MODELS.get(str(teacher.config.student.name))
    _require(
        teacher.dtype != "int8" or not nested or nested.int8,
        f"{path}.dtype='int8': {teacher.config and teacher.config.student.name} has no convolution for it; those of "
        f"{', '.join(name for name, family in MODELS.items() if family.int8)} have",
    )
    num_teachers = len((teacher.path or "").split(","))
    _require(
        len(teacher.image_size) in (0, 1, num_teachers),
        f"{path}.image_size={teacher.image_size}: expected one size, or one for each of the {num_teachers} teachers",
    )


def _check_compress(config: Config, prefix: str) -> None:
    compress, path = config.compress, f"{prefix}.compress"
    _check_regex(f"{path}.layers", compress.layers)
    for name, number, expected in (
        ("layer_sparsity", r"0(\.\d+)?", "PATTERN=SHARE, such as 'fc1/kernel=0.92'"),
        ("layer_bits", r"[1-9]|1[0-2]", "PATTERN=BITS, 1 to 12, such as 'conv.*=8'"),
    ):
        for rule in getattr(compress, name):
            pattern, _, value = rule.rpartition("=")
            _check_regex(f"{path}.{name}", pattern)
            _require(bool(pattern and re.fullmatch(number, value)), f"{path}.{name}={rule!r}: expected {expected}")
    _require(0 <= compress.sparsity < 1, f"{path}.sparsity={compress.sparsity}: expected a share in [0, 1)")
    _choice(f"{path}.scope", compress.scope, ("global", "layer"))
    _choice(f"{path}.centroids", compress.centroids, ("linear", "density", "random"))
    _require(0 <= compress.bits <= 12, f"{path}.bits={compress.bits}: expected 0 to 12 bits")
    _require(
        not compress.layer_sparsity or compress.scope == "layer",
        f"{path}.layer_sparsity={compress.layer_sparsity} needs {path}.scope='layer'",
    )
    _require(not compress.layer_bits or compress.bits > 0, f"{path}.layer_bits needs {path}.bits, for all others")
    begin, end = compress.prune_begin, compress.prune_end
    _require(0 <= begin <= end <= 1, f"{path}.prune_begin={begin}, prune_end={end}: expected shares, in this order")
    _at_least(f"{path}.prune_every_steps", compress.prune_every_steps, 1)
    _require(
        not compress.bits or bool(config.init_from or config.init_config),
        f"{path}.bits={compress.bits} shares the weights of a trained network: set {prefix}.init_from or init_config",
    )


def _resolve_eval_source(config: Config, prefix: str) -> SourceConfig:
    if config.eval_source.name:
        return _located(config.eval_source, config.source)
    _require(
        config.eval_source == SourceConfig(), f"{prefix}.eval_source has fields that are set, but no name: set its name"
    )
    return config.eval_source


def _located(source: SourceConfig, like: SourceConfig) -> SourceConfig:
    return dataclasses.replace(source, data_dir=source.data_dir or like.data_dir)


def _distilled(config: Config) -> bool:
    return bool(config.teacher.path or config.teacher.config)


def _resolve_view(config: Config, prefix: str) -> ViewConfig:
    view, path = config.view, f"{prefix}.view"
    _at_least(f"{path}.image_size", view.image_size, 1)
    _choice(f"{path}.regime", view.regime, REGIMES)
    _choice(f"{path}.crop", view.crop, ("inception", "central"))
    _require(view.channels in (1, 3), f"{path}.channels={view.channels}: expected 1 or 3")
    _require(
        0 < view.area_min <= view.area_max <= 1,
        f"{path}.area_min={view.area_min}, area_max={view.area_max}: expected 0 < area_min <= area_max <= 1",
    )
    mixup = float(view.regime == "function_matching") if view.mixup is None else view.mixup
    _at_least(f"{path}.mixup", mixup, 0)
    if _distilled(config):
        _require(
            (mixup > 0) == (view.regime == "function_matching"),
            f"{path}.mixup={mixup} with {path}.regime={view.regime!r}: function_matching mixes, the others do not",
        )
    else:
        _require(view.regime not in ("fixed", "independent"), f"{path}.regime={view.regime!r} needs a teacher")
    resize = view.resize or view.image_size
    _require(resize >= view.image_size, f"{path}.resize={resize} is smaller than {path}.image_size={view.image_size}")
    _require(
        0 <= view.student_size <= view.image_size,
        f"{path}.student_size={view.student_size} is larger than {path}.image_size={view.image_size}: "
        "a view is as large as the largest network needs",
    )
    return dataclasses.replace(view, mixup=mixup, resize=resize)


def _check_model(model: ModelConfig, image_size: int, path: str) -> None:
    _choice(f"{path}.name", model.name, MODELS, or_own=True)
    family = MODELS.get(str(model.name))
    if family is None:
        return
    for field in dataclasses.fields(ModelConfig):
        value = getattr(model, field.name)
        if field.name not in ("name", *family.fields) and value != field.default:
            reads = ", ".join(family.fields) or "no field"
            raise ConfigError(
                f"{path}.{field.name}={value!r}: the model {model.name!r} does not read it (it reads {reads}); "
                f"set it to {field.default!r}"
            )
    _require(min((*model.features, *model.blocks, 1)) == 1, f"{path}: features and blocks must be positive")
    _require(
        model.name != "cnn" or len(model.features) == 2, f"{path}.features={model.features}: a cnn has two, as (16,32)"
    )
    _require(model.width > 0, f"{path}.width={model.width}: expected a number above 0")
    _require(
        not family.num_stages or len(model.blocks) in (0, family.num_stages),
        f"{path}.blocks={model.blocks}: {model.name} has {family.num_stages} stages",
    )
    least = family.min_image_size
    if model.name == "bit":
        _require(bool(model.depth) != bool(model.blocks), f"{path}: set one of depth and blocks")
        if model.depth:
            depths = ", ".join(map(str, BIT_BLOCKS))
            _require(model.depth in BIT_BLOCKS, f"{path}.depth={model.depth}: expected one of {depths}, or blocks")
        _choice(f"{path}.root_pool", model.root_pool, ("zero", "-inf"))
        least *= 2 ** (len(model.blocks or BIT_BLOCKS[model.depth]) - 1)
    _choice(f"{path}.norm", model.norm, ("batch", "group"))
    _choice(f"{path}.padding", model.padding, ("same", "symmetric"))
    if "patch_size" in family.fields:
        _at_least(f"{path}.patch_size", model.patch_size, 1)
        _require(
            image_size % model.patch_size == 0,
            f"{path}.patch_size={model.patch_size} does not divide an image of {image_size} px",
        )
    _require(
        image_size >= least,
        f"{path}: an image of {image_size} px is smaller than the {least} px that a {model.name!r} needs",
    )


def bit_hyperrule(num_train_examples: int) -> tuple[int, ...]:
    """Steps of the BiT-HyperRule: end of warm-up, three falls to a tenth, end of the run.

    Kolesnikov et al. 2020, "Big Transfer" (arXiv 1912.11370), section 3.3. Its mixup, 0.1 from 20,000 images on, is for
    the config to set.
    """
    if num_train_examples < 20_000:
        return (100, 200, 300, 400, 500)
    if num_train_examples < 500_000:
        return (500, 3_000, 6_000, 9_000, 10_000)
    return (500, 6_000, 12_000, 18_000, 20_000)


def _durations(config: Config, prefix: str) -> tuple[int, int, tuple[int, ...]]:
    """(total steps, warm-up steps, boundaries). Under the BiT-HyperRule another total stretches the whole rule."""
    optimizer, source = config.optimizer, config.source
    _choice(f"{prefix}.optimizer.schedule", optimizer.schedule, SCHEDULES)
    rule = bit_hyperrule(source.num_train_examples) if optimizer.schedule == "bit_hyperrule" else ()
    total = config.total_steps
    if not total and config.total_epochs:
        total = max(1, int(config.total_epochs * source.num_train_examples / config.batch_size))
    elif not total and rule:
        total = rule[-1]
    _require(total > 0, f"{prefix}.total_epochs (or total_steps) must be set: the length of the run")
    warmup, boundaries = optimizer.warmup_steps, optimizer.boundaries
    if rule:
        warmup = warmup or rule[0] * total // rule[-1]
        boundaries = tuple(step * total // rule[-1] for step in rule[1:-1])
    _require(
        0 <= warmup < total, f"{prefix}.optimizer.warmup_steps={warmup}: expected fewer than the run's {total} steps"
    )
    if optimizer.schedule == "staircase":
        rising = (
            list(boundaries) == sorted(set(boundaries))
            and 0 < min(boundaries, default=0) < max(boundaries) + 1 <= total
        )
        _require(rising, f"{prefix}.optimizer.boundaries={boundaries}: expected rising steps within the run's {total}")
    return total, warmup, boundaries

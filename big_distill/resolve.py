"""Checks a config as a whole and fills in what follows from it, before any data is touched."""

from __future__ import annotations

import dataclasses

from ml_collections import ConfigDict

from big_distill.config import (
    OWN_TEACHER,
    PROFILED_STEPS,
    Config,
    ModelConfig,
    ObjectiveConfig,
    SourceConfig,
    ViewConfig,
    freeze,
    user_code,
)
from big_distill.config.checks import at_least, check_numbers, choice, require
from big_distill.config.compress_checks import check_compress
from big_distill.errors import ConfigError
from big_distill.models.families import MODELS, check_model

OBJECTIVES = {  # what each reads
    "function_matching": ("teacher",),
    "hinton": ("teacher", "labels"),
    "logit_regression": ("teacher",),
    "cross_entropy": ("labels",),
}
REGIMES = ("fixed", "independent", "consistent", "function_matching")
PRECISIONS = ("default", "bfloat16", "tensorfloat32", "float32")
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
    frozen: Config = freeze(Config, config, "config")
    _refuse_own_teacher(frozen, "config")
    return _resolve(frozen, num_devices, platform, "config")


def _refuse_own_teacher(config: Config, prefix: str) -> None:
    """Where there is no second stage whose teacher a first one could share."""
    require(
        config.teacher.path != OWN_TEACHER,
        f"{prefix}.teacher.path={OWN_TEACHER!r} is for a first stage (init_config); for a directory of this name write "
        f"'./{OWN_TEACHER}'",
    )
    if config.teacher.config is not None:
        _refuse_own_teacher(config.teacher.config, f"{prefix}.teacher.config")


def _resolve(config: Config, num_devices: int, platform: str, prefix: str) -> Config:
    if config.teacher.path:
        config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, config=None))
    if config.init_from:
        config = dataclasses.replace(config, init_config=None)
    check_numbers(config, prefix)
    _check_devices(config, num_devices, prefix)
    if ":" in config.source.name:
        user_code.load(config.source.name, f"{prefix}.source.name")
    view = _resolve_view(config, prefix)
    eval_source = _resolve_eval_source(config, prefix)
    check_model(config.student, view.size_for_student, f"{prefix}.student")
    if config.teacher.path and config.teacher.model.name is not None:
        size = config.teacher.image_size[0] if config.teacher.image_size else view.image_size
        check_model(config.teacher.model, size, f"{prefix}.teacher.model")
    _check_teacher(config, prefix)
    check_compress(config, prefix)
    _check_objective(config, prefix)
    total_steps, warmup_steps, boundaries = _durations(config, prefix)
    choice(f"{prefix}.optimizer.name", config.optimizer.name, ("adam", "sgd"))
    choice(f"{prefix}.optimizer.mu_dtype", config.optimizer.mu_dtype, ("float32", "bfloat16"))
    choice(f"{prefix}.dtype", config.dtype, ("auto", "float32", "bfloat16"))
    choice(f"{prefix}.matmul_precision", config.matmul_precision, PRECISIONS)
    choice(f"{prefix}.teacher.dtype", config.teacher.dtype, ("auto", "float32", "bfloat16", "int8"))
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
        if init_config.teacher.path == OWN_TEACHER:
            shared = dataclasses.replace(config.teacher, config=None, path=config.teacher.path or OWN_TEACHER)
            init_config = dataclasses.replace(init_config, teacher=shared)
        init_config = _resolve(init_config, num_devices, platform, f"{prefix}.init_config")
    _check_beginning(dataclasses.replace(config, teacher=teacher, init_config=init_config), prefix)
    require(
        config.steps_per_dispatch <= total_steps,
        f"{prefix}.steps_per_dispatch={config.steps_per_dispatch} is more than the run's {total_steps} steps",
    )
    profile_at_step = config.profile_at_step and _whole_dispatches(config.profile_at_step, config.steps_per_dispatch)
    require(
        not profile_at_step or profile_at_step + PROFILED_STEPS <= total_steps,
        f"{prefix}.profile_at_step={config.profile_at_step}: fewer than {PROFILED_STEPS} of the run's {total_steps} "
        "steps are left to trace after it, and its dispatch",
    )
    eval_every_steps = config.eval_every_steps or _whole_dispatches(total_steps // 10, config.steps_per_dispatch)
    checkpoint_every_steps = config.checkpoint_every_steps or eval_every_steps
    for name, every in (("eval_every_steps", eval_every_steps), ("checkpoint_every_steps", checkpoint_every_steps)):
        nearest = _whole_dispatches(every, config.steps_per_dispatch)
        require(
            every == nearest,
            f"{prefix}.{name}={every} is not a multiple of {prefix}.steps_per_dispatch={config.steps_per_dispatch}; "
            f"{nearest} is",
        )
    return dataclasses.replace(
        config,
        total_steps=total_steps,
        teacher=teacher,
        init_config=init_config,
        view=view,
        eval_source=eval_source,
        optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup_steps, boundaries=boundaries),
        dtype=dtype,
        profile_at_step=profile_at_step,
        eval_every_steps=eval_every_steps,
        checkpoint_every_steps=checkpoint_every_steps,
    )


def _whole_dispatches(steps: int, steps_per_dispatch: int) -> int:
    """The multiple below, but one at least."""
    return max(1, steps // steps_per_dispatch) * steps_per_dispatch


def _check_beginning(config: Config, prefix: str) -> None:
    """What a run starts from must be the same network, where it is trained in the run's directory."""
    path, begun = f"{prefix}.init_from", config.init_from or ""
    several = config.teacher.path if begun == OWN_TEACHER else begun
    require("," not in (several or ""), f"{path}={begun!r}: a run starts from one network, not from {several!r}")
    require(
        begun != OWN_TEACHER or _distilled(config),
        f"{path}={begun!r}: there is no teacher; set {prefix}.teacher.config or {prefix}.teacher.path",
    )
    inner = config.init_config and config.init_config.teacher.path
    require(
        inner != OWN_TEACHER or config.teacher.config is not None or config.teacher.path == OWN_TEACHER,
        f"{prefix}.init_config.teacher.path={inner!r}: there is no teacher; set {prefix}.teacher.config or .path",
    )
    first, name = config.begins_from, "teacher.config" if begun else "init_config"
    if first is None:
        return
    compared = [("num_classes", first.num_classes, config.num_classes)]
    compared.append(("view.channels", first.view.channels, config.view.channels))
    for field in (field.name for field in dataclasses.fields(ModelConfig) if field.name != "activation_bits"):
        compared.append((f"student.{field}", getattr(first.student, field), getattr(config.student, field)))
    for field, theirs, ours in compared:
        require(
            theirs == ours,
            f"{prefix}.{name}.{field}={theirs!r} differs from {prefix}.{field}={ours!r}: both are of one network",
        )


def needs_labels(objective: ObjectiveConfig) -> bool:
    """Whether an objective cannot do without labels; of your own it is not known."""
    reads = OBJECTIVES.get(objective.name, ())
    return "labels" in reads and not ("teacher" in reads and objective.alpha == 1)


def _check_devices(config: Config, num_devices: int, prefix: str) -> None:
    require(
        num_devices % config.mesh.fsdp == 0,
        f"{prefix}.mesh.fsdp={config.mesh.fsdp} does not divide the {num_devices} devices",
    )
    require(
        config.batch_size % (config.accumulate_steps * num_devices) == 0,
        f"{prefix}.batch_size={config.batch_size} is not divisible by {num_devices} devices x "
        f"accumulate_steps={config.accumulate_steps}",
    )


def _check_objective(config: Config, prefix: str) -> None:
    objective, teacher, nested = config.objective, config.teacher, config.teacher.config
    choice(f"{prefix}.objective.name", objective.name, OBJECTIVES, or_own=True)
    temperature, alpha = objective.temperature, objective.alpha
    require(temperature > 0, f"{prefix}.objective.temperature={temperature}: expected a number above 0")
    require(0 <= alpha <= 1, f"{prefix}.objective.alpha={alpha}: expected a number in [0, 1]")
    smoothing = objective.label_smoothing
    require(0 <= smoothing < 1, f"{prefix}.objective.label_smoothing={smoothing}: expected a number in [0, 1)")
    if not all(teacher.paths):
        raise ConfigError(f"{prefix}.teacher.path={teacher.path!r}: one of the names is empty")
    choice(f"{prefix}.teacher.mean", teacher.mean, ("logits", "probabilities"))
    reads = OBJECTIVES.get(objective.name)
    if reads and "teacher" not in reads:
        require(
            not _distilled(config),
            f"{prefix}.objective.name={objective.name!r} reads no teacher: unset {prefix}.teacher",
        )
    elif reads:
        require(
            _distilled(config),
            f"{prefix}.objective.name={objective.name!r} needs a teacher: set {prefix}.teacher.path or "
            f"{prefix}.teacher.config, or train on labels with 'cross_entropy'",
        )
    require(
        teacher.model.name is None or bool(teacher.path),
        f"{prefix}.teacher.model.name={teacher.model.name!r} declares a weight file: set {prefix}.teacher.path too",
    )
    if nested is None:
        return
    for name, theirs, ours in (
        ("num_classes", nested.num_classes, config.num_classes),
        ("view.channels", nested.view.channels, config.view.channels),
    ):
        require(
            theirs == ours, f"{prefix}.teacher.config.{name}={theirs} differs from the student's {prefix}.{name}={ours}"
        )
    theirs, ours = nested.view.size_for_student, config.view.image_size
    require(
        theirs <= ours,
        f"{prefix}.view.image_size={ours} is smaller than {prefix}.teacher.config.view.image_size={theirs}: "
        "a view is as large as the largest network needs",
    )


def _check_teacher(config: Config, prefix: str) -> None:
    teacher, path = config.teacher, f"{prefix}.teacher"
    require(0 <= teacher.min_accuracy <= 1, f"{path}.min_accuracy={teacher.min_accuracy}: expected a share in [0, 1]")
    at_least(f"{path}.max_fold_kl", teacher.max_fold_kl, 0)
    require(
        not teacher.sharded or config.mesh.fsdp > 1,
        f"{path}.sharded=True: there is nothing to split it over; set {prefix}.mesh.fsdp to 2 or more",
    )
    channels = config.view.channels
    for name in ("input_mean", "input_std"):
        values = getattr(teacher, name)
        require(len(values) in (0, 1, channels), f"{path}.{name}={values}: expected one value, or {channels}")
    require(min((*teacher.input_std, 1)) > 0, f"{path}.input_std={teacher.input_std}: expected numbers above 0")
    require(min((*teacher.image_size, 1)) == 1, f"{path}.image_size={teacher.image_size}: expected positive sizes")
    nested = teacher.config and MODELS.get(str(teacher.config.student.name))
    require(
        teacher.dtype != "int8" or not nested or nested.int8,
        f"{path}.dtype='int8': {teacher.config and teacher.config.student.name} has no convolution for it; those of "
        f"{', '.join(name for name, family in MODELS.items() if family.int8)} have",
    )
    num_teachers = max(len(teacher.paths), 1)
    require(
        len(teacher.image_size) in (0, 1, num_teachers),
        f"{path}.image_size={teacher.image_size}: expected one size, or one for each of the {num_teachers} teachers",
    )


def _resolve_eval_source(config: Config, prefix: str) -> SourceConfig:
    if config.eval_source.name:
        return _located(config.eval_source, config.source)
    require(
        config.eval_source == SourceConfig(), f"{prefix}.eval_source has fields that are set, but no name: set its name"
    )
    return config.eval_source


def _located(source: SourceConfig, like: SourceConfig) -> SourceConfig:
    return dataclasses.replace(source, data_dir=source.data_dir or like.data_dir)


def _distilled(config: Config) -> bool:
    return bool(config.teacher.path or config.teacher.config)


def _resolve_view(config: Config, prefix: str) -> ViewConfig:
    view, path = config.view, f"{prefix}.view"
    choice(f"{path}.regime", view.regime, REGIMES)
    choice(f"{path}.crop", view.crop, ("inception", "central"))
    require(
        0 < view.area_min <= view.area_max <= 1,
        f"{path}.area_min={view.area_min}, area_max={view.area_max}: expected 0 < area_min <= area_max <= 1",
    )
    require(
        not view.reduced_decoding or (view.crop == "inception" and view.regime != "fixed"),
        f"{path}.reduced_decoding=True with {path}.crop={view.crop!r} and {path}.regime={view.regime!r}: central views "
        "are of whole images",
    )
    require(
        not (view.reduced_decoding and config.source.resident),
        f"{path}.reduced_decoding=True with {prefix}.source.resident=True: what lives on the devices are whole images",
    )
    mixup = float(view.regime == "function_matching") if view.mixup is None else view.mixup
    at_least(f"{path}.mixup", mixup, 0)
    if _distilled(config):
        require(
            (mixup > 0) == (view.regime == "function_matching"),
            f"{path}.mixup={mixup} with {path}.regime={view.regime!r}: function_matching mixes, the others do not",
        )
    else:
        require(view.regime not in ("fixed", "independent"), f"{path}.regime={view.regime!r} needs a teacher")
    resize = view.resize or view.image_size
    require(resize >= view.image_size, f"{path}.resize={resize} is smaller than {path}.image_size={view.image_size}")
    require(
        0 <= view.student_size <= view.image_size,
        f"{path}.student_size={view.student_size} is larger than {path}.image_size={view.image_size}: "
        "a view is as large as the largest network needs",
    )
    return dataclasses.replace(view, mixup=mixup, resize=resize)


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
    choice(f"{prefix}.optimizer.schedule", optimizer.schedule, SCHEDULES)
    rule = bit_hyperrule(source.num_train_examples) if optimizer.schedule == "bit_hyperrule" else ()
    total = config.total_steps
    if not total and config.total_epochs:
        steps = config.total_epochs * source.num_train_examples / config.batch_size
        require(steps < 1 << 63, f"{prefix}.total_epochs={config.total_epochs}: expected less")
        total = max(1, int(steps))
    elif not total and rule:
        total = rule[-1]
    require(total > 0, f"{prefix}.total_epochs (or total_steps) must be set: the length of the run")
    warmup, boundaries = optimizer.warmup_steps, optimizer.boundaries
    if rule:
        warmup = warmup or rule[0] * total // rule[-1]
        boundaries = tuple(step * total // rule[-1] for step in rule[1:-1])
    require(
        0 <= warmup < total, f"{prefix}.optimizer.warmup_steps={warmup}: expected fewer than the run's {total} steps"
    )
    if optimizer.schedule == "staircase":
        rising = (
            list(boundaries) == sorted(set(boundaries))
            and 0 < min(boundaries, default=0) < max(boundaries) + 1 <= total
        )
        require(rising, f"{prefix}.optimizer.boundaries={boundaries}: expected rising steps within the run's {total}")
    return total, warmup, boundaries

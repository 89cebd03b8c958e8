"""Checks a config as a whole and fills in the fields that follow from others, before any data is touched."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence

from ml_collections import ConfigDict

from big_distill.config import (
    OWN_TEACHER,
    PATH_SOURCES,
    PROFILED_STEPS,
    Config,
    ModelConfig,
    SourceConfig,
    ViewConfig,
    freeze,
    parse_options,
    user_code,
)
from big_distill.config.checks import check_fields, require
from big_distill.models import FAMILIES, check_model, family_of
from big_distill.step import objectives

_OF_ALL_NETWORKS = ("num_classes", "view.channels")


def resolve(config: ConfigDict, num_devices: int, platform: str) -> Config:
    """Checks a config and fills in the fields that follow from others. It touches no data.

    Args:
      config: what a config file returned, with the command line's overrides.
      num_devices: number of devices, over all processes.
      platform: 'cpu', 'gpu' or 'tpu'.

    Raises:
      ConfigError: one line with the field, its value and what was expected.
    """
    return _resolve(freeze(Config, config, "config"), num_devices, platform, "config")


def _resolve(config: Config, num_devices: int, platform: str, prefix: str) -> Config:
    if config.teacher.path:
        config = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, config=None))
    if config.init_from:
        config = dataclasses.replace(config, init_config=None)
    require(
        config.teacher.path != OWN_TEACHER or prefix.endswith(".init_config"),
        f"{prefix}.teacher.path={OWN_TEACHER!r} is for a first stage (init_config); for a directory of this name write "
        f"'./{OWN_TEACHER}'",
    )
    check_fields(config, prefix)
    _check_names(config, prefix)
    _check_devices(config, num_devices, prefix)
    _check_sources(config, prefix)
    config = dataclasses.replace(config, view=_resolve_view(config, prefix))
    check_model(config.student, config.view.size_for_student, f"{prefix}.student")
    _check_teacher(config, prefix)
    _check_compress(config, prefix)
    _check_objective(config, prefix)
    _check_selection(config, prefix)
    config = _with_durations(config, prefix)
    config = _with_nested(config, num_devices, platform, prefix)
    _check_beginning(config, prefix)
    auto = {"cpu": "float32"}.get(platform, "bfloat16")
    dtype = auto if config.dtype == "auto" else config.dtype
    teacher_dtype = dtype if config.teacher.dtype == "auto" else config.teacher.dtype
    return dataclasses.replace(
        config,
        dtype=dtype,
        teacher=dataclasses.replace(config.teacher, dtype=teacher_dtype),
        eval_source=_located(config.eval_source, config.source) if config.eval_source.name else config.eval_source,
    )


def _check_names(config: Config, prefix: str) -> None:
    """Requires that a user's own code is there, and that our own code reads the options (our sources have none)."""
    for part in ("student", "teacher.model", "objective", "source", "eval_source"):
        values, path = operator.attrgetter(part)(config), f"{prefix}.{part}"
        if ":" in (values.name or ""):
            user_code.load(values.name, f"{path}.name")
        else:
            options = objectives.OPTIONS.get(values.name, {}) if part == "objective" else {}
            options = family_of(values).options if isinstance(values, ModelConfig) else options
            parse_options(values.options, options, f"{path}.options")


def _with_nested(config: Config, num_devices: int, platform: str, prefix: str) -> Config:
    """Resolves the configs of the teacher and of the first stage."""
    teacher, first = config.teacher, config.init_config
    if teacher.config is not None:
        nested = dataclasses.replace(teacher.config, source=_located(teacher.config.source, config.source))
        nested = _resolve(nested, num_devices, platform, f"{prefix}.teacher.config")
        teacher = dataclasses.replace(teacher, config=nested)
    if first is not None:
        first = dataclasses.replace(first, source=_located(first.source, config.source))
        if first.teacher.path == OWN_TEACHER:
            shared = dataclasses.replace(teacher, config=None, path=teacher.path or OWN_TEACHER)
            first = dataclasses.replace(first, teacher=shared)
        first = _resolve(first, num_devices, platform, f"{prefix}.init_config")
    return dataclasses.replace(config, teacher=teacher, init_config=first)


def _check_beginning(config: Config, prefix: str) -> None:
    """Requires one network to start from: the same as the student, if it is trained in the run's directory."""
    path, begun = f"{prefix}.init_from", config.init_from or ""
    require(
        config.init_fresh is None or bool(begun or config.init_config),
        f"{prefix}.init_fresh={config.init_fresh!r} needs {path}",
    )
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
    if config.begins_from is not None:
        same = [f"student.{field.name}" for field in dataclasses.fields(ModelConfig) if field.name != "activation_bits"]
        name = f"{prefix}.{'teacher.config' if begun else 'init_config'}"
        _require_same(config.begins_from, config, (*_OF_ALL_NETWORKS, *same), name, prefix)


def _require_same(theirs: Config, ours: Config, fields: Sequence[str], name: str, prefix: str) -> None:
    for field in fields:
        their, our = (operator.attrgetter(field)(config) for config in (theirs, ours))
        require(their == our, f"{name}.{field}={their!r} differs from {prefix}.{field}={our!r}")


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
    objective, name = objectives.build(config.objective), f"{prefix}.objective.name={config.objective.name!r}"
    require(
        not objective.reads or objective.reads_teacher or not _distilled(config),
        f"{name} reads no teacher: unset {prefix}.teacher",
    )
    require(
        not objective.reads_teacher or _distilled(config),
        f"{name} needs a teacher: set {prefix}.teacher.path or {prefix}.teacher.config, or train on labels with "
        "'cross_entropy'",
    )


def _check_selection(config: Config, prefix: str) -> None:
    """Requires what the metric needs by which the best checkpoint is chosen. The default is left out without it."""
    name = f"{prefix}.select_by={config.select_by!r}"
    source = "eval_source" if config.eval_source.name else "source"
    require(
        config.select_by == "accuracy" or config.evaluated_on.validation is not None,
        f"{name} is measured on the validation split: set {prefix}.{source}.validation",
    )
    require(
        config.select_by not in ("agreement", "kl") or _distilled(config),
        f"{name} compares with a teacher, but there is none: set {prefix}.teacher.path or {prefix}.teacher.config",
    )


def _check_teacher(config: Config, prefix: str) -> None:
    teacher, path = config.teacher, f"{prefix}.teacher"
    require(all(teacher.paths), f"{path}.path={teacher.path!r}: one of the names is empty")
    if teacher.model.name is not None:
        require(
            bool(teacher.path), f"{path}.model.name={teacher.model.name!r} declares a weight file: set {path}.path too"
        )
        size = teacher.image_size[0] if teacher.image_size else config.view.image_size
        check_model(teacher.model, size, f"{path}.model")
    require(
        not teacher.sharded or config.mesh.fsdp > 1,
        f"{path}.sharded=True: there is nothing to split it over; set {prefix}.mesh.fsdp to 2 or more",
    )
    channels = config.view.channels
    for name in ("input_mean", "input_std"):
        values = getattr(teacher, name)
        require(len(values) in (0, 1, channels), f"{path}.{name}={values}: expected one value, or {channels}")
    require(
        teacher.dtype != "int8" or not teacher.config or family_of(teacher.config.student).int8,
        f"{path}.dtype='int8': {teacher.config and teacher.config.student.name} has no convolution for it; those of "
        f"{', '.join(name for name, family in FAMILIES.items() if family.int8)} have",
    )
    num_teachers = max(len(teacher.paths), 1)
    require(
        len(teacher.image_size) in (0, 1, num_teachers),
        f"{path}.image_size={teacher.image_size}: expected one size, or one for each of the {num_teachers} teachers",
    )
    if teacher.config is not None:
        _require_same(teacher.config, config, _OF_ALL_NETWORKS, f"{path}.config", prefix)
        theirs, ours = teacher.config.view.size_for_student, config.view.image_size
        require(
            theirs <= ours,
            f"{prefix}.view.image_size={ours} is smaller than {path}.config.view.image_size={theirs}: "
            "a view is as large as the largest network needs",
        )


def _check_compress(config: Config, prefix: str) -> None:
    compress, path = config.compress, f"{prefix}.compress"
    begun = bool(config.init_from or config.init_config)
    pruned = bool(compress.sparsity or compress.layer_sparsity)
    bits, integers, structure = compress.bits, compress.integer_bits, compress.structure
    require(not (integers and bits), f"{path}.integer_bits={integers} with {path}.bits={bits}: set one")
    require(not (compress.rank_energy and compress.rank_flops), f"{path}.rank_energy and rank_flops: set one of them")
    if ":" in structure:
        kept, group = map(int, structure.split(":"))
        require(kept < group, f"{path}.structure={structure!r}: expected N:M with N < M, such as '2:4'")
        require(not pruned, f"{path}.structure={structure!r} says how many stay: unset {path}.sparsity")
    require(structure != "channels" or pruned, f"{path}.structure='channels': set {path}.sparsity, the share that goes")
    for name, cuts in (
        (f"bits={bits}", bits),
        ("rank_energy", compress.rank_energy),
        ("rank_flops", compress.rank_flops),
        ("structure='channels'", structure == "channels"),
    ):
        require(begun or not cuts, f"{path}.{name} needs a trained network: set {prefix}.init_from or init_config")
    require(
        not compress.layer_sparsity or compress.scope == "layer",
        f"{path}.layer_sparsity={compress.layer_sparsity} needs {path}.scope='layer'",
    )
    require(not compress.layer_bits or bits > 0, f"{path}.layer_bits needs {path}.bits, for all others")
    begin, end = compress.prune_begin, compress.prune_end
    require(begin <= end, f"{path}.prune_begin={begin}, prune_end={end}: expected prune_begin <= prune_end")
    require(
        not bits or not config.init_fresh,
        f"{path}.bits={bits} with {prefix}.init_fresh={config.init_fresh!r}: new weights cannot be shared",
    )
    require(
        end > 0 or not (pruned or ":" in structure) or begun,
        f"{path}.prune_end={end} prunes before anything is learned: set {prefix}.init_from, or a later end",
    )


def _check_sources(config: Config, prefix: str) -> None:
    source, eval_source = config.source, config.eval_source
    require(bool(source.name), f"{prefix}.source.name must be set: digits, a TFDS set, folder or your own")
    require(source.num_train_examples > 0, f"{prefix}.source.num_train_examples=0: expected at least 1")
    for name, one in (("source", source), ("eval_source", eval_source)):
        require(
            len(one.fractions) == 3 and math.isclose(sum(one.fractions), 1),
            f"{prefix}.{name}.fractions={one.fractions}: expected three shares that add up to 1, of training, "
            "validation and test",
        )
        require(
            one.path is None or one.name in PATH_SOURCES or ":" in one.name,
            f"{prefix}.{name}.path={one.path!r}, but {prefix}.{name}.name={one.name!r} has no path; "
            f"--{prefix}.{name}.name=folder reads a directory",
        )
        for field in ("layout", "group", "fractions"):
            value = getattr(one, field)
            require(
                one.name == "folder" or value == getattr(SourceConfig(), field),
                f"{prefix}.{name}.{field}={value!r} is of the source 'folder', but {prefix}.{name}.name={one.name!r}",
            )
    for name in ("resident", "balance", "drop_duplicates", "duplicates_seconds", "allow_empty_classes", "bit_depth"):
        value = getattr(eval_source, name)
        require(
            value == getattr(SourceConfig(), name),
            f"{prefix}.eval_source.{name}={value!r} is not read: set it for the training split, {prefix}.source",
        )
    require(
        bool(eval_source.name) or eval_source == SourceConfig(),
        f"{prefix}.eval_source has fields that are set, but no name: set its name",
    )


def _located(source: SourceConfig, like: SourceConfig) -> SourceConfig:
    return dataclasses.replace(source, data_dir=source.data_dir or like.data_dir)


def _distilled(config: Config) -> bool:
    return bool(config.teacher.path or config.teacher.config)


def _resolve_view(config: Config, prefix: str) -> ViewConfig:
    view, path = config.view, f"{prefix}.view"
    require(
        view.area_min <= view.area_max,
        f"{path}.area_min={view.area_min}, area_max={view.area_max}: expected area_min <= area_max",
    )
    require(
        not view.reduced_decoding or (view.crop == "inception" and view.regime != "fixed"),
        f"{path}.reduced_decoding=True with {path}.crop={view.crop!r} and {path}.regime={view.regime!r}: central views "
        "are of whole images",
    )
    require(
        not (view.reduced_decoding and config.source.resident),
        f"{path}.reduced_decoding=True with {prefix}.source.resident=True: the devices hold whole images",
    )
    mixup = float(view.regime == "function_matching") if view.mixup is None else view.mixup
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
        view.student_size <= view.image_size,
        f"{path}.student_size={view.student_size} is larger than {path}.image_size={view.image_size}: "
        "a view is as large as the largest network needs",
    )
    return dataclasses.replace(view, mixup=mixup, resize=resize)


def bit_hyperrule(num_train_examples: int) -> tuple[int, ...]:
    """Returns the steps of the BiT-HyperRule: end of warm-up, three falls to a tenth, end of the run.

    The rule is of Kolesnikov et al. 2020, "Big Transfer" (arXiv 1912.11370), section 3.3. The config must set its
    mixup, 0.1 from 20,000 images on.
    """
    if num_train_examples < 20_000:
        return (100, 200, 300, 400, 500)
    if num_train_examples < 500_000:
        return (500, 3_000, 6_000, 9_000, 10_000)
    return (500, 6_000, 12_000, 18_000, 20_000)


def _with_durations(config: Config, prefix: str) -> Config:
    """Fills in all durations, in steps. Under the BiT-HyperRule another total stretches the whole rule."""
    optimizer, source = config.optimizer, config.source
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
    require(warmup < total, f"{prefix}.optimizer.warmup_steps={warmup}: expected fewer than the run's {total} steps")
    if optimizer.schedule == "staircase":
        within = [0, *boundaries, total]
        rising = len(within) > 2 and within == sorted(set(within))
        require(rising, f"{prefix}.optimizer.boundaries={boundaries}: expected rising steps within the run's {total}")
    optimizer = dataclasses.replace(optimizer, warmup_steps=warmup, boundaries=boundaries)
    return _with_intervals(dataclasses.replace(config, total_steps=total, optimizer=optimizer), prefix)


def _with_intervals(config: Config, prefix: str) -> Config:
    """Fills in the intervals of the run, in whole dispatches."""
    total, at_once = config.total_steps, config.steps_per_dispatch
    require(at_once <= total, f"{prefix}.steps_per_dispatch={at_once} is more than the run's {total} steps")
    profile = config.profile_at_step and _whole_dispatches(config.profile_at_step, at_once)
    require(
        not profile or profile + PROFILED_STEPS <= total,
        f"{prefix}.profile_at_step={config.profile_at_step}: fewer than {PROFILED_STEPS} of the run's {total} "
        "steps follow the dispatch of this step",
    )
    evaluate = config.eval_every_steps or _whole_dispatches(total // 10, at_once)
    save = config.checkpoint_every_steps or evaluate
    for name, every in (("eval_every_steps", evaluate), ("checkpoint_every_steps", save)):
        whole = _whole_dispatches(every, at_once)
        require(
            every == whole,
            f"{prefix}.{name}={every} is not a multiple of {prefix}.steps_per_dispatch={at_once}; {whole} is",
        )
    return dataclasses.replace(config, profile_at_step=profile, eval_every_steps=evaluate, checkpoint_every_steps=save)


def _whole_dispatches(steps: int, steps_per_dispatch: int) -> int:
    """Rounds steps down to whole dispatches, but to one at least."""
    return max(1, steps // steps_per_dispatch) * steps_per_dispatch

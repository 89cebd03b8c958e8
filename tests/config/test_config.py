"""Checks that a config is right, or that one line says which field is not."""

import dataclasses
import json
import re
import typing

import pytest

from big_distill import config as config_lib
from big_distill.config import differences, fingerprint, from_dict, to_dict
from big_distill.config.checks import check_fields, mistake
from big_distill.config.fields import describe_fields, fields_of, type_at
from big_distill.config.schema import maths
from big_distill.config.template import parse_arg, smoke, teacher_of, template
from big_distill.errors import ConfigError
from big_distill.resolve import resolve
from big_distill.step import objectives


def distilled(tiny):
    teacher = tiny.copy_and_resolve_references()
    tiny.objective.name = "function_matching"
    tiny.view.regime = "function_matching"
    tiny.teacher.config = teacher
    return tiny


def set_(config, path, value):
    *parents, name = path.split(".")
    for parent in parents:
        config = config[parent]
    config[name] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("objective.temperature", 0.0, "config.objective.temperature=0.0: expected a number above 0"),
        ("objective.alpha", 1.5, r"config.objective.alpha=1.5: expected a number in \[0, 1\]"),
        ("objective.name", "function_machine", "did you mean 'function_matching'"),
        ("optimizer.warmup_steps", 6, "config.optimizer.warmup_steps=6: expected fewer than the run's 6 steps"),
        ("optimizer.schedule", "cosin", "did you mean 'cosine'"),
        ("optimizer.lr", -1.0, "config.optimizer.lr=-1.0: expected at least 0"),
        ("batch_size", 12, "config.batch_size=12 is not divisible by 8 devices"),
        ("batch_size", 0, "config.batch_size=0: expected at least 1"),
        ("accumulate_steps", 4, "batch_size=40 is not divisible by 8 devices x accumulate_steps=4"),
        ("mesh.fsdp", 3, "config.mesh.fsdp=3 does not divide the 8 devices"),
        ("mesh.fsdp", 0, "config.mesh.fsdp=0: expected at least 1"),
        ("teacher.sharded", True, "config.teacher.sharded=True: .* set config.mesh.fsdp to 2 or more"),
        ("teacher.config.mesh.fsdp", 5, "config.teacher.config.mesh.fsdp=5 does not divide the 8 devices"),
        ("matmul_precision", "float23", "config.matmul_precision='float23' is not known; did you mean 'float32'"),
        ("num_classes", 1, "config.num_classes=1: expected at least 2"),
        ("total_steps", 0, "total_epochs .or total_steps. must be set"),
        (
            "student.name",
            "byt",
            "config.student.name='byt' is not known; expected one of mlp, lenet5, cnn, six_layer_cnn, bit, ",
        ),
        ("student.depth", 50, "config.student.depth=50: the model 'cnn' does not read it"),
        ("student.features", (4,), "a cnn has two"),
        ("view.image_size", 3, "an image of 3 px is smaller than the 4 px that a 'cnn' needs"),
        ("view.regime", "consistant", "did you mean 'consistent'"),
        ("view.regime", "consistent", "mixup=1.0|function_matching mixes"),
        ("view.regime", "fixed", "reduced_decoding=True with .*'fixed': central views are of whole images"),
        ("view.area_min", 0.0, r"config.view.area_min=0.0: expected a number in \(0, 1\]"),
        ("view.area_max", 0.01, "area_min=0.5, area_max=0.01: expected area_min <= area_max"),
        ("view.resize", 7, "config.view.resize=7 is smaller than config.view.image_size=8"),
        ("dtype", "float16", "config.dtype='float16' is not known"),
        (
            "teacher.model.name",
            "lenet5",
            "teacher.model.name='lenet5' declares a weight file: set config.teacher.path too",
        ),
        ("select_by", "macro_f2", "config.select_by='macro_f2' is not known; did you mean 'macro_f1'"),
        (
            "teacher.config.select_by",
            "kl",
            "config.teacher.config.select_by='kl' compares with a teacher, but there is",
        ),
        ("optimizer.decay_mask", "(", r"decay_mask='\(' is not a regular expression"),
        ("objective.name", "nowhere:loss", "config.objective.name='nowhere:loss': expected your own module:function"),
        ("source.name", "nowhere:data", "config.source.name='nowhere:data': expected your own module:function"),
        ("teacher.config.num_classes", 9, "config.teacher.config.num_classes=9 differs from config.num_classes=10"),
        ("teacher.config.view.image_size", 16, "config.view.image_size=8 is smaller than config.teacher.config"),
        ("teacher.config.objective.temperature", -1.0, "config.teacher.config.objective.temperature=-1.0"),
    ],
)
def test_wrong_values(tiny, path, value, message):
    config = distilled(tiny)
    if (path, value) == ("view.regime", "consistent"):
        config.view.mixup = 1.0
    config.view.reduced_decoding = (path, value) == ("view.regime", "fixed")
    set_(config, path, value)
    with pytest.raises(ConfigError, match=message) as error:
        resolve(config, 8, "cpu")
    assert "\n" not in str(error.value)


def test_image_smaller_than_the_network(tiny):
    tiny.student = {"name": "bit", "depth": 26, "blocks": (), "features": (), "width": 1.0, "root_pool": "-inf"}
    tiny.view.image_size = 31
    with pytest.raises(ConfigError, match="31 px is smaller than the 32 px"):
        resolve(tiny, 1, "cpu")


def test_objective_and_teacher_go_together(tiny):
    tiny.objective.name = "hinton"
    with pytest.raises(ConfigError, match="'hinton' needs a teacher"):
        resolve(tiny, 1, "cpu")
    tiny.objective.name = "cross_entropy"
    tiny.view.regime = "independent"
    with pytest.raises(ConfigError, match="regime='independent' needs a teacher"):
        resolve(tiny, 1, "cpu")


def test_the_best_needs_a_validation_split(tiny):
    tiny.source.validation = None
    assert resolve(tiny, 1, "cpu").select_by == "accuracy", "as ever: the latest is kept"
    tiny.select_by = "macro_f1"
    with pytest.raises(ConfigError, match=r"select_by='macro_f1' is measured on .* set config.source.validation"):
        resolve(tiny, 1, "cpu")


def test_required_fields_are_named():
    with pytest.raises(ConfigError, match=r"config\.num_classes must be set: Number of classes"):
        resolve(template(), 1, "cpu")


def test_template_refuses_typos(tiny):
    with pytest.raises(AttributeError):
        tiny.optimizer.learning_rate = 1.0
    with pytest.raises(TypeError):
        tiny.optimizer.lr = "fast"
    with pytest.raises(ConfigError, match=r"config.optimizer.lrr is not a field of the config; did you mean 'lr'"):
        type_at("config.optimizer.lrr")
    with pytest.raises(
        ConfigError, match=r"config.lr is not a field of the config; did you mean 'config.optimizer.lr'"
    ):
        type_at("config.lr")
    with pytest.raises(ConfigError, match=r"config.teacher.config.objektive is not a field"):
        type_at("config.teacher.config.objektive.name")
    assert type_at("config.teacher.config.objective.name") is str


def test_resolved_durations(tiny):
    tiny.total_steps, tiny.total_epochs = 0, 2.0
    resolved = resolve(tiny, 1, "cpu")
    assert resolved.total_steps == 2 * 1200 // 40
    assert resolved.dtype == "float32" and resolve(tiny, 1, "tpu").dtype == "bfloat16"
    tiny.total_steps = 7
    assert resolve(tiny, 1, "cpu").total_steps == 7


@pytest.mark.parametrize(
    ("num_examples", "rule"), [(1020, (100, 200, 300, 400, 500)), (75_750, (500, 3000, 6000, 9000, 10_000))]
)
def test_bit_hyperrule(tiny, num_examples, rule):
    tiny.optimizer.schedule = "bit_hyperrule"
    tiny.source.num_train_examples = num_examples
    tiny.total_steps = 0
    resolved = resolve(tiny, 1, "cpu")
    assert (resolved.optimizer.warmup_steps, *resolved.optimizer.boundaries, resolved.total_steps) == rule
    tiny.total_steps = rule[-1] // 10
    stretched = resolve(tiny, 1, "cpu")
    assert stretched.optimizer.boundaries == tuple(step // 10 for step in rule[1:-1])


def test_every_field_has_a_kind_and_a_meaning():
    for name, field, _ in fields_of():
        assert field.metadata["kind"] in ("maths", "place", "numerics", "cosmetic"), name
        assert field.metadata["help"], name


MARKED = [
    (path, type_)
    for path, field, type_ in fields_of()
    if any(field.metadata[mark] for mark in ("choices", "form", "regex", "within"))
]


@pytest.mark.parametrize(("path", "type_"), MARKED, ids=[path for path, _ in MARKED])
def test_what_a_field_says_that_it_may_be_is_checked(path, type_):
    """A marked text field may not be '(', and a marked number may not be -1."""
    odd = {str: "(", int: -1, float: -1.0}[typing.get_args(type_)[0] if typing.get_args(type_) else type_]
    values = {"num_classes": 10, "batch_size": 8, "view": {"image_size": 8}}
    inner, (*parents, last) = values, path.split(".")[1:]
    for parent in parents:
        inner = inner.setdefault(parent, {})
    check_fields(config_lib.freeze(config_lib.Config, values, "config"), "config")
    inner[last] = odd if type_ in (str, int, float) else (odd,)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{path}={odd!r}')}(: expected| is not )") as error:
        check_fields(config_lib.freeze(config_lib.Config, values, "config"), "config")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("within", "right", "wrong", "words"),
    [
        ("[0, 1)", (0, 0.5), (-0.1, 1), "a number in [0, 1)"),
        ("(0, 1]", (0.1, 1.0), (0.0, 1.1), "a number in (0, 1]"),
        ("(0, inf)", (1e-9, 1e300), (0, -1), "a number above 0"),
        ("[2, inf)", (2, 1 << 62), (1,), "at least 2"),
    ],
)
def test_intervals(within, right, wrong, words):
    field = maths(0, "", within=within)
    assert [mistake(field, value) for value in right] == [""] * len(right)
    assert [mistake(field, value) for value in wrong] == [f": expected {words}"] * len(wrong)


@pytest.mark.parametrize(
    "words",
    [
        "config.optimizer.name (str; maths; default 'adam'; one of adam, sgd)",
        "config.objective.label_smoothing (float; maths; default 0.0; a number in [0, 1))",
        "config.mesh.fsdp (int; numerics; default 1; at least 1)",
        "one of function_matching, hinton, logit_regression, cross_entropy, or your own module:function)",
        "config.compress.layers (str; maths; default '.*/kernel'; a regular expression)",
    ],
)
def test_help_says_what_a_field_may_be(words):
    assert words in describe_fields()


def test_the_objectives_that_the_schema_names_are_those_there_are():
    (choices,) = [field.metadata["choices"] for path, field, _ in fields_of() if path == "config.objective.name"]
    assert sorted(choices) == sorted(objectives.OBJECTIVES)


def test_an_own_model_reads_its_fields_as_it_likes(tiny):
    tiny.student.update(name="math:sqrt", norm="layer", depth=7, features=(0,))
    assert resolve(tiny, 1, "cpu").student.norm == "layer"
    tiny.student.ranks = ("fc1",)
    with pytest.raises(ConfigError, match=r"config.student.ranks='fc1': expected LAYER=RANK"):
        resolve(tiny, 1, "cpu")


def test_fingerprint_hashes_maths_alone(tiny):
    config = resolve(distilled(tiny), 1, "cpu")
    same = dataclasses.replace(config, log_every_steps=1000, dtype="bfloat16", keep_latest=9, total_epochs=3.0)
    assert fingerprint(same) == fingerprint(config)
    assert differences(config, same, "maths") == []
    assert differences(config, same, "numerics") == ["config.dtype: 'float32' -> 'bfloat16'"]
    other = dataclasses.replace(config, seed=1)
    assert fingerprint(other) != fingerprint(config)
    assert differences(config, other, "maths") == ["config.seed: 0 -> 1"]
    alone = dataclasses.replace(config, teacher=config_lib.TeacherConfig())
    assert any("teacher.config" in line for line in differences(config, alone, "maths"))


def test_a_teachers_path_wins_over_its_config(tiny):
    config = distilled(tiny)
    config.teacher.path = "runs/other"
    assert resolve(config, 1, "cpu").teacher.config is None


def test_fingerprint_survives_new_fields(tiny):
    """Only fields that differ from the defaults count. Users notice a change of this fingerprint."""
    assert fingerprint(resolve(distilled(tiny), 1, "cpu")) == "95d35ffd39aa"


def test_round_trip_through_json(tiny):
    config = resolve(distilled(tiny), 1, "cpu")
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


def test_a_path_needs_a_source_that_has_one(tiny):
    tiny.source.path = "photos"
    with pytest.raises(
        ConfigError, match=r"source.path='photos', but config.source.name='digits' has no path; --config"
    ):
        resolve(tiny, 1, "cpu")


def test_a_config_that_was_kept_before_a_field_was_there_is_read(tiny):
    config = resolve(tiny, 1, "cpu")
    kept = to_dict(config)
    for part in (kept["student"], kept["teacher"]["model"], kept["objective"], kept["source"], kept["eval_source"]):
        assert part.pop("options") == []
    assert from_dict(kept) == config


def test_the_teachers_data_are_the_students():
    config = template()
    config.num_classes = 10
    config.teacher.config = teacher_of(config)
    config.num_classes, config.source.path, config.view.fit = 3, "photos", "pad"
    teacher = config.teacher.config
    assert (teacher.num_classes, teacher.source.path, teacher.view.fit) == (3, "photos", "pad")
    teacher.source.path, teacher.source.balance = "others", "full"
    assert (config.source.path, config.source.balance) == ("photos", "none")


def test_parse_arg():
    assert vars(parse_arg("variant=long,smoke", variant="fast|long", smoke=False)) == {"variant": "long", "smoke": True}
    assert vars(parse_arg(None, variant="fast|long", smoke=False)) == {"variant": "fast", "smoke": False}
    with pytest.raises(ConfigError, match="no argument :varaint; did you mean 'variant'"):
        parse_arg("varaint=long", variant="fast|long")
    with pytest.raises(ConfigError, match="no argument :long; did you mean ':variant=long'"):
        parse_arg("long", variant="fast|long")
    with pytest.raises(ConfigError, match="variant=lng; did you mean 'long'"):
        parse_arg("variant=lng", variant="fast|long")


def test_smoke_is_small_random_and_complete(tiny):
    resolved = resolve(smoke(distilled(tiny)), 1, "cpu")
    assert (resolved.total_steps, resolved.batch_size, resolved.optimizer.warmup_steps) == (20, 8, 2)
    assert resolved.source.name == resolved.teacher.config.source.name == "random"
    assert resolved.teacher.config.total_steps == 2
    assert resolved.num_classes == 10


def test_the_teacher_of_a_smoke_stays_on_the_students_data(tiny):
    small = smoke(distilled(tiny))
    small.num_classes, small.source.train = 2, "train[:90%]"
    teacher = resolve(small, 1, "cpu").teacher.config
    assert (teacher.num_classes, teacher.source.train) == (2, "train[:90%]")


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("vit_small", "patch_size", 3, "patch_size=3 does not divide an image of 32 px"),
        ("vit_base", "patch_size", 0, "patch_size=0: expected at least 1"),
        ("efficientnet_lite2", "blocks", (1, 1), "efficientnet_lite2 has 7 stages"),
        ("mobilenet_v3_large", "width", -1.0, r"width=-1.0: expected a number in \(0, 1000\]"),
        ("vit_small", "padding", "symmetric", "does not read it .it reads features, patch_size"),
        ("mobilenet_v3_large", "norm", "layer", "norm='layer' is not known; expected one of batch, group"),
        ("efficientnet_lite0", "padding", "SAME", "padding='SAME' is not known; did you mean 'same'"),
        ("efficientnet_lite0", "norm", "group", "does not read it .it reads features, blocks, width, padding"),
    ],
)
def test_wrong_fields_of_imagenet_networks(tiny, name, field, value, message):
    tiny.view.image_size = 32
    tiny.student.name, tiny.student.features = name, ()
    resolve(tiny, 1, "cpu")
    tiny.student[field] = value
    with pytest.raises(ConfigError, match=message):
        resolve(tiny, 1, "cpu")

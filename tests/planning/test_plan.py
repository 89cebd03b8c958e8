"""Checks plans: they price the program of the run itself, also on slices that are not there."""

import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiers import cases

from big_distill import plan as command
from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import ModelConfig
from big_distill.config.template import load_config, teacher_of
from big_distill.errors import ConfigError, RunError
from big_distill.parallel import sharding
from big_distill.planning import chips, estimate, tables
from big_distill.planning.costs import Cost
from big_distill.planning.estimate import Blueprint, check_batches, plan, stages, warnings_of, with_batches, with_slices
from big_distill.planning.plan import growth
from big_distill.resolve import resolve
from big_distill.state import Card, path_name
from big_distill.training.data import open_data
from big_distill.training.setup import set_up

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
CPUS = chips.open_slice("cpu:8")
V5E = dataclasses.replace(CPUS, name="v5e:2x4", platform="tpu", chip=chips.TPUS["v5e"])
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.fixture
def distilled(tiny):
    """Adds a teacher that is trained first."""
    teacher = teacher_of(tiny)
    teacher.student.features = (8, 8)
    tiny.teacher.config = teacher
    tiny.objective.name = "function_matching"
    tiny.view.regime = "function_matching"
    return tiny


def resolved(config, where=CPUS):
    return resolve(config, len(where.devices), where.platform)


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype), x.sharding), tree)


@pytest.mark.parametrize(("accumulate_steps", "fsdp"), cases((1, 4), full=[(1, 1), (5, 1)]))
def test_what_is_planned_is_what_runs(distilled, eight_devices, tmp_path, monkeypatch, accumulate_steps, fsdp):
    """The run's own step lowers to the same text, with the run's own arrays, donation and shardings."""
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    distilled.accumulate_steps, distilled.mesh.fsdp, distilled.teacher.sharded = accumulate_steps, fsdp, fsdp > 1
    config = resolved(distilled)
    blueprint, run = Blueprint(config, CPUS), set_up(config, tmp_path, open_data(config))
    variables = run.computation.init(jax.random.key(0))
    architecture = weights.architecture_of(config.teacher.config, (), None)
    network = weights.Network(
        architecture, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), architecture.abstract_variables())
    )
    teacher = teachers.freeze((network,), config, run.mesh, ())
    state, chunk = (
        run.computation.begin(variables),
        sharding.to_devices(run.mesh, next(run.train_data.chunks(0)), axis=1),
    )
    eval_batch = sharding.to_devices(run.mesh, next(iter(run.eval_data["test"])))
    assert shapes(blueprint.state) == shapes(state)
    assert shapes(blueprint.teacher) == shapes(teacher)
    assert shapes(blueprint.chunk) == shapes(chunk)
    assert shapes(blueprint.eval_batch) == shapes(eval_batch)
    ours = blueprint.computation.train_chunk.lower(
        (blueprint.state,), blueprint.teacher, None, blueprint.chunk
    ).as_text()
    assert ours == run.computation.train_chunk.lower((state,), teacher, run.place_resident(), chunk).as_text()
    assert "tf.aliasing_output" in ours or "jax.buffer_donor" in ours
    ours = blueprint.computation.eval_step.lower(blueprint.variables, blueprint.teacher, blueprint.eval_batch).as_text()
    assert ours == run.computation.eval_step.lower(state.variables, teacher, eval_batch).as_text()


@pytest.mark.parametrize("regime", ["fixed", "independent", "consistent"])
def test_batches_are_what_the_pipeline_makes(distilled, eight_devices, tmp_path, regime):
    distilled.view.regime = regime
    config = resolved(distilled)
    run = set_up(config, tmp_path, open_data(config))
    chunk = sharding.to_devices(run.mesh, next(run.train_data.chunks(0)), axis=1)
    assert shapes(Blueprint(config, CPUS).chunk) == shapes(chunk)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    "model",
    [
        ModelConfig("bit", blocks=(1, 1), width=0.125),
        ModelConfig("mobilenet_v3_large", blocks=(1,) * 6, width=0.125),
        ModelConfig("cnn", features=(4, 8)),
    ],
    ids=lambda model: model.name,
)
def test_a_teacher_without_weights_has_the_shapes_of_one_with(tiny, model, dtype):
    if dtype == "int8" and model.name == "cnn":
        pytest.skip("no convolution for it")
    tiny.view.image_size, tiny.view.channels = 32, 3
    tiny.objective.name, tiny.view.regime = "function_matching", "function_matching"
    tiny.teacher.path, tiny.teacher.dtype = "unused.npz", dtype
    config, mesh = resolved(tiny), sharding.make_mesh()
    architecture = weights.ConfigArchitecture(model, 10, 3, 32, Card(32))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), architecture.abstract_variables())
    network = weights.Network(architecture, variables)
    abstract = teachers.abstract((architecture,), config, mesh)
    ranges = ()
    if dtype == "int8":
        named = jax.tree_util.tree_leaves_with_path(abstract.variables[0]["params"])
        ranges = ({path_name(path[:-1]): 1.0 for path, x in named if x.dtype == np.int8},)
        assert ranges[0]
    placed = teachers.freeze((network,), config, mesh, (), ranges)
    assert shapes(placed) == shapes(abstract)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("bit-m-r152x2-flowers128", (ModelConfig("bit", depth=152, width=2.0), 128)),
        ("bit-m-r50x1", (ModelConfig("bit", depth=50, root_pool="zero"), 160)),
        ("somewhere/flowers_r101x3.npz", (ModelConfig("bit", depth=101, width=3.0), 160)),
        ("gs://bit_models/distill/R50x1_160.npz", (ModelConfig("bit", depth=50), 160)),
        ("efficientnet-lite1", (ModelConfig("efficientnet_lite1"), 240)),
    ],
)
def test_a_name_tells_what_is_not_here(tiny, path, expected):
    tiny.view.image_size, tiny.view.channels = 160 if expected[1] <= 160 else 240, 3
    tiny.objective.name, tiny.teacher.path = "function_matching", path
    (found,) = teachers.announced(resolved(tiny))
    assert (found.model, found.card.image_size) == expected


def test_a_teacher_that_nothing_is_known_of(tiny):
    tiny.objective.name, tiny.teacher.path = "function_matching", "teacher.npz"
    with pytest.raises(ConfigError, match=r"'teacher.npz' does not exist here, .* set config.teacher.model.name"):
        teachers.announced(resolved(tiny))
    tiny.teacher.model.name, tiny.teacher.model.features = "cnn", (4, 4)
    assert teachers.announced(resolved(tiny))[0].model == ModelConfig("cnn", features=(4, 4))


def test_stages_in_the_order_of_training(tiny):
    def names(name, arg=""):
        config = resolve(load_config(CONFIGS[0].with_name(f"{name}.py"), arg), 1, "cpu")
        return [(stage, own.student.name, own.teacher.config is not None) for stage, own in stages(config)]

    assert names("digits_fm") == [("teacher", "cnn", False), ("student", "cnn", True)]
    assert names("qat_int8_mnist") == [
        ("teacher/teacher", "cnn", False),
        ("teacher", "cnn", True),
        ("student", "cnn", True),
    ]
    assert names("deep_compression_lenet5") == [("init", "lenet5", False), ("student", "lenet5", False)]
    assert names("deep_compression_lenet5", "teacher=six_layer") == [  # one teacher for both
        ("teacher", "six_layer_cnn", False),
        ("init", "lenet5", True),
        ("student", "lenet5", True),
    ]


@pytest.mark.full
def test_the_parts_of_a_batch_are_counted_as_often_as_they_are_computed(distilled):
    flops = {}
    for parts in (1, 5):
        distilled.accumulate_steps = parts
        flops[parts] = plan(
            "tiny", resolved(distilled), chips.open_slice("cpu"), with_evaluation=False
        ).student.train.flops
    assert flops[5] == pytest.approx(flops[1], rel=0.25)  # the update is small, and is counted as often


def test_sizes_of_the_state_and_the_batch(tiny):
    tiny.keep_latest, tiny.keep_best = 2, 1
    stage = plan("tiny", resolved(tiny), CPUS, with_evaluation=False).student
    num_params = 4 * 9 + 4 + 8 * 4 * 9 + 8 + (2 * 2 * 8) * 10 + 10
    state = num_params * (4 + 2 + 4)  # parameters; Adam's first moment in bfloat16, its second
    assert state <= stage.checkpoint_bytes <= state + 32  # the rest are a few counters
    assert (stage.kept_checkpoints, stage.batch_per_chip, stage.eval_batch_size) == (3, 5, 40)
    assert stage.host_bytes_per_step == 5 * (8 * 8 + 4) + 4 + 4  # pixels and labels; the step and lambda
    batch = 5 * 8 * 8
    assert batch + state <= stage.train.argument_bytes <= batch + state + 256
    assert stage.train.output_bytes < 1024  # the state takes the place of the old one
    assert stage.train.collective_bytes["all-reduce"] == pytest.approx(4 * num_params, rel=0.1)


def test_what_is_split_takes_less_of_a_chip(tiny, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SIZE", 256)
    tiny.mesh.fsdp = 4
    stage = plan("tiny", resolved(tiny), CPUS, with_evaluation=False).student
    split, whole = 8 * 4 * 9 + 32 * 10, 4 * 9 + 4 + 8 + 10  # conv2 and head; conv1 and the biases
    state = (split // 4 + whole) * (4 + 2 + 4)
    assert state <= stage.constant_bytes <= state + 32
    assert state + 5 * 8 * 8 <= stage.train.argument_bytes <= state + 5 * 8 * 8 + 256
    assert (split + whole) * 10 <= stage.checkpoint_bytes <= (split + whole) * 10 + 32
    assert stage.train.collective_bytes["all-gather"] == 4 * split


@pytest.mark.full
def test_resident_data_take_room(tiny):
    tiny.source.resident = True
    room = 1200 * (8 * 8 + 4)
    stage = plan("tiny", resolved(tiny), CPUS).student
    assert stage.resident_bytes == stage.to_json()["resident_bytes"] == room
    assert stage.evaluation_bytes == stage.evaluation.total_bytes + stage.held_bytes + room
    assert stage.host_bytes_per_step == 5 * (4 + 4 * 4 + 1) + 4 + 4  # id, box, flip; the step and lambda
    assert any("images are taken to be 8 px a side" in note for note in stage.notes)
    small = dataclasses.replace(CPUS, chip=dataclasses.replace(V5E.chip, memory=stage.train.total_bytes + room - 1))
    assert not plan("tiny", resolved(tiny), small).student.train.fits
    tiny.source.resident = False
    assert plan("tiny", resolved(tiny), small).student.train.fits


def test_what_makes_no_sense_is_said(distilled):
    distilled.batch_size, distilled.total_steps, distilled.total_epochs = 64, 10_000, 0.0
    distilled.eval_every_steps = 5_000
    slow = Cost(True, seconds={"memory": 0.1})

    def found(cost=slow, **fields):
        config = dataclasses.replace(resolved(distilled), **fields)
        return " ".join(warnings_of(config, V5E, cost))

    assert found() == ""
    optimizer = dataclasses.replace(resolved(distilled).optimizer, warmup_steps=5_000)
    assert "optimizer.warmup_steps=5,000 is half of the run's 10,000 steps" in found(optimizer=optimizer)
    assert found(optimizer=dataclasses.replace(optimizer, warmup_steps=4_999)) == ""
    few = found(total_epochs=1_000.0, total_steps=1_992, eval_every_steps=100)
    assert "total_epochs=1,000 of 1,200 images are only 1,992 steps of 64" in few
    assert "batch_size=2,048 is more than the 1,200 images" in found(batch_size=2048)
    assert "5 images a device and part: a TPU pads that to 8" in found(batch_size=40)
    assert "eval_every_steps=20,000 evaluates only at the end" in found(eval_every_steps=20_000)
    assert "saves every 10 s" in found(checkpoint_every_steps=100)
    said = found(Cost(True, seconds={"memory": 2.0}), steps_per_dispatch=30)
    assert "steps_per_dispatch=30 takes longer than grace_seconds=30" in said and "are another program" in said
    assert "less than the host takes to launch it: set steps_per_dispatch (now 1)" in found(
        Cost(True, seconds={"memory": 1e-6})
    )
    assert "the loop while.3 was counted once" in found(dataclasses.replace(slow, unknown_loops=("while.3",)))


ISSUE = """fits flops hbm_bytes temp_bytes argument_bytes host_bytes_per_step compile_seconds roofline_seconds bound_by
images_per_second total_hours"""


def test_json_and_table(distilled, monkeypatch):
    monkeypatch.setattr(estimate, "compile_step", priced(estimate.compile_step))
    config = resolved(distilled)
    one = with_batches(plan("tiny", config, V5E), config, [10])
    found = json.loads(json.dumps(one.to_json(2.0)))
    assert found.keys() >= set(ISSUE.split())
    assert [stage["name"] for stage in found["stages"]] == ["teacher", "student"]
    student = found["stages"][1]
    assert found["flops"] == student["flops"] > 0 and found["bound_by"] == "memory"
    assert found["roofline_seconds"] == 0.25
    assert found["images_per_second"] == 40 / 0.25
    assert student["total_hours"] == 6 * 0.25 / 3600
    assert found["total_hours"] == 2 * student["total_hours"]
    assert found["cost"] == pytest.approx(found["total_hours"] * 8 * 2.0)
    assert found["batches"]["10"]["flops"] == pytest.approx(2 * found["flops"], rel=0.2)
    assert found["evaluation"]["flops"] < found["flops"]
    text = command.report([one], price=2.0)
    assert "250 ms" in text and "memory" in text and "all 2 networks: 3.0 s, 0.013 US dollars" in text
    assert max(map(len, text.splitlines())) <= 120
    beside = command.report([one, dataclasses.replace(one, slice=dataclasses.replace(V5E, name="v6e:2x4"))], None)
    assert "A: tiny on v5e:2x4" in beside and "B: tiny on v6e:2x4" in beside
    assert "A: student" in beside and "B: all 2 networks" in beside


def priced(compile_step):
    """Compiles for the CPU, and prices it as a chip that needs a quarter of a second."""

    def compiled(step, args, where, held_bytes=0):
        cost, text = compile_step(step, args, CPUS, held_bytes)
        return dataclasses.replace(cost, seconds={"arithmetic": 0.125, "memory": 0.25}), text

    return compiled


def test_a_step_that_the_compiler_finds_no_room_for(distilled, monkeypatch):
    def refused(step, args, *_):
        return Cost(False, refused=f"RESOURCE_EXHAUSTED: {args[-1]['pixels'].shape[-4]} images"), ""

    monkeypatch.setattr(estimate, "compile_step", refused)
    config = resolved(distilled)
    one = with_batches(plan("tiny", config, V5E), config, [10])
    assert not one.student.fits and one.total_hours is None and one.student.largest_batch is None
    found = one.to_json(1.0)
    unknown = ("flops", "hbm_bytes", "temp_bytes", "argument_bytes", "roofline_seconds", "images_per_second", "cost")
    assert [found[name] for name in unknown] == [None] * len(unknown)
    assert found["evaluation"]["flops"] is None and found["batches"]["10"]["flops"] is None
    text = command.report([one], 1.0)
    assert "warning: student: the compiler finds no room: RESOURCE_EXHAUSTED: 40 images" in text
    assert "warning: student, evaluation: the compiler finds no room: RESOURCE_EXHAUSTED" in text
    assert "warning: --batches=10: the compiler finds no room: RESOURCE_EXHAUSTED: 80 images" in text
    rows = {line[:26].strip(): line[26:].split() for line in text.splitlines()}
    assert rows["fits"] == ["NO", "NO"] and "FLOPs" not in rows and "HBM traffic" not in rows
    assert [line.split() for line in text.splitlines() if line.startswith("10 ")] == [["10", "no", *"------"]]


def test_a_larger_batch_that_is_refused_bounds_the_largest(distilled, monkeypatch):
    def compiled(step, args, *_):
        batch = args[-1]["pixels"].shape[-4] // 8
        return Cost(False, refused="full") if batch > 15 else Cost(True, temp_bytes=1000 * batch), ""

    distilled.accumulate_steps = 5
    monkeypatch.setattr(estimate, "compile_step", compiled)
    config = resolved(distilled)
    where = dataclasses.replace(CPUS, chip=chips.TPUS["v5e"])
    one = plan("tiny", config, where, with_evaluation=False)
    assert one.student.largest_batch > 1000 and one.student.largest_batch % 5 == 0
    assert with_batches(one, config, [10, 20]).student.largest_batch == 15


@pytest.mark.full
def test_weak_scaling_keeps_a_chips_part(tiny):
    config, two = resolved(tiny), chips.open_slice("cpu:2")
    one = plan("tiny", config, CPUS, with_evaluation=False)
    one = with_slices(one, config, [two])
    ((where, cost),) = one.slices
    assert where is two and cost.argument_bytes == one.student.train.argument_bytes  # as many images on each device
    found = one.to_json(None)["weak_scaling"]["cpu:2"]
    assert found["num_chips"] == 2 and found["growth"].keys() >= {"flops", "hbm_bytes", "temp_bytes", "all-reduce"}
    assert abs(found["growth"]["flops"]) < 1 and found["growth"]["all-reduce"] == 0
    assert growth(one.student.train, Cost(False, refused="full")) is None
    grown = growth(Cost(True, flops=2.0, hbm_bytes=10), Cost(True, flops=3.0, hbm_bytes=9))
    assert grown == {"flops": pytest.approx(50), "hbm_bytes": pytest.approx(-10)}
    rows = [line.split() for line in command.report([one], None).splitlines()]
    assert ["a", "chip", "and", "step", "cpu:8", "cpu:2"] in rows and ["images", "5", "5"] in rows
    assert [row[-2:] for row in rows if row[:1] == ["all-reduce"]][-1] == ["(+0.0", "%)"]
    with pytest.raises(ConfigError, match="--weak_scaling=v5e:4x4: expected slices of cpu, as --topology=cpu:8"):
        estimate.check_slices(CPUS, [dataclasses.replace(V5E, name="v5e:4x4")])


def test_a_step_that_needs_more_than_the_chip_has(distilled):
    small = dataclasses.replace(CPUS, chip=chips.Chip(1e12, 1e12, 20_000, 1e9, 1e9))
    one = plan("tiny", resolved(distilled), small, with_evaluation=False)
    assert not one.student.fits and one.student.largest_batch < one.student.batch_per_chip
    assert "NO, " in command.report([one], None)


def test_batches_that_cannot_be_split(distilled):
    distilled.accumulate_steps = 5
    with pytest.raises(ConfigError, match="--batches: 8 images a chip cannot be split in 5"):
        check_batches(resolved(distilled), CPUS, [10, 8])
    with pytest.raises(ConfigError, match=f"--batches: {10**20} images a chip; expected at most 1,048,576"):
        check_batches(resolved(distilled), CPUS, [10**20])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.002, "2.00 ms"), (3, "3.0 s"), (90, "1.5 minutes"), (2304, "38.4 minutes"), (3600 * 1234.5, "1,234.50 hours")],
)
def test_a_time_that_can_be_read(seconds, text):
    assert tables._duration(seconds) == text


@pytest.mark.parametrize(
    ("dollars", "text"), [(0, "0.00"), (0.00123, "0.0012"), (0.0999, "0.10"), (0.5, "0.50"), (1234.567, "1,234.57")]
)
def test_a_price_that_can_be_read(dollars, text):
    assert tables._money(dollars) == text


def run_command(*flags):
    """Runs the command in a process of its own, which makes its own devices."""
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    root = CONFIGS[0].parents[1]
    environment |= {"PYTHONPATH": str(root), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    arguments = [sys.executable, "-m", "big_distill.plan", *flags]
    return subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=root, env=environment)


@pytest.mark.full
def test_the_command(tmp_path):
    """The command gives the figures of a config, the compiled text, and a comparison with fewer devices."""
    text = tmp_path / "step.hlo"
    config = "--config=configs/mnist_teacher.py:smoke"
    different = "configs/mnist_teacher.py:smoke config.optimizer.name=sgd cpu:4"
    flags = [
        "--config.batch_size=16",
        "--topology=cpu:8",
        "--json",
        f"--dump-hlo={text}",
        "--noeval",
        "--compare=cpu:2",
    ]
    done = run_command(config, *flags, f"--compare={different}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(one["config"], one["topology"], one["num_chips"], one["batch_per_chip"]) for one in found] == [
        ("mnist_teacher:smoke", "cpu:8", 8, 2),
        ("mnist_teacher:smoke", "cpu:2", 2, 8),
        ("mnist_teacher:smoke optimizer.name=sgd", "cpu:4", 4, 4),
    ]
    assert all(one["fits"] and one["evaluation"] is None for one in found)
    assert found[2]["checkpoint_bytes"] < found[0]["checkpoint_bytes"]  # one moment less
    assert text.read_text().startswith("HloModule")


@pytest.mark.full
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=cpu", "--dump_hlo=nowhere/a.hlo"], "--dump-hlo=nowhere/a.hlo: cannot be written: No such file"),
        (
            ["--topology=cpu", "--compare=config.batchsize=2"],
            "config.batchsize is not a field of the config; did you mean",
        ),
        (["--topology=cpu", "--compare=config.batch_size=two"], "config.batch_size='two': expected an integer"),
        (["--topology=cpu:1025"], "--topology=cpu:1025: expected cpu, or cpu:8 for eight devices; at most"),
        (["--topology=cpu", "--weak_scaling=nonsense"], "--weak_scaling=nonsense: there is no such slice"),
        (["--topology=cpu", "--price=nan"], "--price=nan: expected US dollars a chip-hour, 0 to 1,000,000"),
        (["--topology=cpu", "--dump-hlo=."], "--dump-hlo=.: cannot be written: Is a directory"),
    ],
)
def test_flags_that_are_wrong(flags, message):
    done = run_command("--config=configs/digits_fm.py:smoke", *flags)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--compare is empty"),
        (" , ", "--compare is empty"),
        ("cpu:2,v9:1", "--compare=v9:1: there is no such slice"),
        ("--batch_size=3", "or --config.field=value; did you mean --config.batch_size=3?"),
        ("lr=3", "or --config.field=value; did you mean --config.optimizer.lr=3?"),
        ("--topology=cpu:2", "'--topology=cpu:2' goes without its flag here; did you mean 'cpu:2'?"),
    ],
)
def test_a_comparison_that_says_nothing_to_compare(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        command._different(text, "tiny", None, "cpu")


def test_topologies_to_compare():
    different = command._different("V5E:2x4, cpu:2,", "tiny", None, "cpu")
    assert different == [("tiny", None, "v5e:2x4"), ("tiny", None, "cpu:2")]


def test_where_the_text_cannot_be_kept(tmp_path):
    with pytest.raises(ConfigError, match=r"--dump-hlo=.*: cannot be written: Is a directory"):
        command._check_writable(tmp_path)
    command._check_writable(tmp_path / "step.hlo")
    assert not list(tmp_path.iterdir()), "nothing is left by looking"
    (tmp_path / "step.hlo").write_text("of before")
    command._check_writable(tmp_path / "step.hlo")
    assert (tmp_path / "step.hlo").read_text() == "of before"
    with pytest.raises(RunError, match=r"--dump-hlo=.*: Is a directory"):
        command._write(tmp_path, "text")


@pytest.mark.full
@needs_libtpu
def test_a_small_config_for_a_tpu():
    where = chips.open_slice("v5e:2x4")
    one = plan("digits_fm", resolved(load_config(CONFIGS[0].with_name("digits_fm.py")), where), where)
    student = one.student
    assert student.fits and student.train.bound_by and student.train.collective_bytes["all-reduce"] > 4 * 3_000
    assert 0 < student.train.hbm_bytes < 1e8 and not student.train.unknown_loops
    assert one.total_hours > 0
    convolutions = re.findall(
        r'op_name="jit\(train_chunk\)/([\w()]*)/.*conv_general_dilated', one.hlo.partition("ENTRY")[2]
    )
    forward = [name for name in convolutions if not name.startswith("transpose")]
    assert forward == ["CNN"] * 2 + ["jvp(CNN)"] * 2, "the teacher comes first"


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_for_a_tpu(path):
    """The large configs take minutes each."""
    where = chips.open_slice("v5e:2x4")
    one = plan(path.stem, resolved(load_config(path), where), where)
    assert all(stage.fits and stage.train.flops > 0 and not stage.train.unknown_loops for stage in one.stages)

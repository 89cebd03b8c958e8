"""Plans: the very program of the run, priced; on slices that are not there."""

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

from big_distill import chips, planning, sharding, weights
from big_distill import plan as command
from big_distill import teacher as teachers
from big_distill.config import ModelConfig
from big_distill.config_files import load_config, teacher_of
from big_distill.costs import Cost, largest_batch, roofline
from big_distill.errors import ConfigError
from big_distill.planning import Blueprint, plan, stages, warnings_of
from big_distill.resolve import resolve
from big_distill.run import open_run
from big_distill.state import Card

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))
CPUS = chips.open_slice("cpu:8")
V5E = dataclasses.replace(CPUS, name="v5e:2x4", platform="tpu", chip=chips.CHIPS["v5e"])
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")


@pytest.fixture
def distilled(tiny):
    """With a teacher that is trained first."""
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


@pytest.mark.parametrize("accumulate_steps", [1, 5])
def test_what_is_planned_is_what_runs(distilled, tmp_path, accumulate_steps):
    """The text that the run's own step lowers to, with the run's own arrays, donation and shardings."""
    distilled.accumulate_steps = accumulate_steps
    config = resolved(distilled)
    blueprint, run = Blueprint(config, CPUS), open_run(config, tmp_path)
    variables = run.init(jax.random.key(0))
    architecture = weights.architecture_of(config.teacher.config, (), None)
    network = weights.Network(
        architecture, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), architecture.abstract_variables())
    )
    teacher = teachers.place((network,), teachers.frozen_variables((network,), config, ()), config, run.mesh, ())
    state, batch = run.begin(variables), sharding.to_devices(run.mesh, run.train_data.batch(0))
    eval_batch = sharding.to_devices(run.mesh, next(iter(run.eval_data["test"])))
    assert shapes(blueprint.state) == shapes(state)
    assert shapes(blueprint.teacher) == shapes(teacher)
    assert shapes(blueprint.batch) == shapes(batch)
    assert shapes(blueprint.eval_batch) == shapes(eval_batch)
    ours = blueprint.computation.train_step.lower(blueprint.state, blueprint.teacher, blueprint.batch).as_text()
    assert ours == run.train_step.lower(state, teacher, batch).as_text()
    assert "tf.aliasing_output" in ours or "jax.buffer_donor" in ours
    ours = blueprint.computation.eval_step.lower(blueprint.variables, blueprint.teacher, blueprint.eval_batch).as_text()
    assert ours == run.eval_step.lower(state.variables, teacher, eval_batch).as_text()


@pytest.mark.parametrize("regime", ["fixed", "independent", "consistent"])
def test_batches_are_what_the_pipeline_makes(distilled, tmp_path, regime):
    distilled.view.regime = regime
    config = resolved(distilled)
    run = open_run(config, tmp_path)
    assert shapes(Blueprint(config, CPUS).batch) == shapes(sharding.to_devices(run.mesh, run.train_data.batch(0)))


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
    architecture = weights.Architecture(model, 10, 3, 32, Card(32))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), architecture.abstract_variables())
    network = weights.Network(architecture, variables)
    abstract = teachers.abstract((architecture,), config, mesh)
    ranges = ()
    if dtype == "int8":
        named = jax.tree_util.tree_leaves_with_path(abstract.variables[0]["params"])
        ranges = ({weights.path_name(path[:-1]): 1.0 for path, x in named if x.dtype == np.int8},)
        assert ranges[0]
    placed = teachers.place((network,), teachers.frozen_variables((network,), config, ranges), config, mesh, ())
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
    with pytest.raises(ConfigError, match=r"'teacher.npz' is not here .* config.teacher.model.name does"):
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


def test_the_parts_of_a_batch_are_counted_as_often_as_they_are_computed(distilled):
    flops = {}
    for parts in (1, 5):
        distilled.accumulate_steps = parts
        flops[parts] = plan(
            "tiny", resolved(distilled), chips.open_slice("cpu"), with_evaluation=False
        ).student.train.flops
    assert flops[5] == pytest.approx(flops[1], rel=0.15)


def test_sizes_of_the_state_and_the_batch(tiny):
    tiny.keep_latest, tiny.keep_best = 2, 1
    stage = plan("tiny", resolved(tiny), CPUS, with_evaluation=False).student
    num_params = 4 * 9 + 4 + 8 * 4 * 9 + 8 + (2 * 2 * 8) * 10 + 10
    state = num_params * (4 + 2 + 4)  # parameters; Adam's first moment in bfloat16, its second
    assert state <= stage.checkpoint_bytes <= state + 32  # and a few counters
    assert (stage.kept_checkpoints, stage.batch_per_chip, stage.eval_batch_size) == (3, 5, 40)
    assert stage.host_bytes_per_step == 5 * (8 * 8 + 4) + 4 + 4  # pixels and labels; the step and lambda
    batch = 5 * 8 * 8
    assert batch + state <= stage.train.argument_bytes <= batch + state + 256
    assert stage.train.output_bytes < 1024  # the state takes the place of the old one
    assert stage.train.collective_bytes["all-reduce"] == pytest.approx(4 * num_params, rel=0.1)


def test_a_roofline_by_hand():
    cost = Cost(True, flops=3e12, int8_flops=1e12, hbm_bytes=8_190_000_000, collective_bytes={"all-reduce": 10**9})
    seconds = roofline(cost, V5E)
    assert seconds["arithmetic"] == pytest.approx(2e12 / 197e12 + 1e12 / 393e12)
    assert seconds["memory"] == pytest.approx(0.01)
    assert seconds["interconnect"] == pytest.approx(2 * 7 / 8 * 1e9 / 200e9)
    cost = dataclasses.replace(cost, seconds=seconds)
    assert (cost.bound_by, cost.roofline_seconds) == ("arithmetic", seconds["arithmetic"])
    assert roofline(cost, CPUS) == {}


def test_the_largest_batch_is_on_a_line():
    room = int(V5E.chip.memory)

    def cost(batch):
        return Cost(True, argument_bytes=1000, temp_bytes=batch * 1_000_000 + 500_000)

    assert largest_batch({8: cost(8)}, 1000, V5E) == room // (1_000_000 + 500_000 // 8)
    exact = (room - 501_000) // 1_000_000
    assert largest_batch({8: cost(8), 16: cost(16), 4: Cost(False, refused="full")}, 1000, V5E) == exact
    two_cores = dataclasses.replace(V5E, num_chips=4)
    assert largest_batch({8: cost(8), 16: cost(16)}, 1000, two_cores) == exact // 2 * 2
    assert largest_batch({8: Cost(False, refused="full")}, 0, V5E) is None
    assert largest_batch({8: cost(8)}, 0, CPUS) is None


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
    assert "eval_every_steps=20,000: evaluated only at the end" in found(eval_every_steps=20_000)
    assert "saves every 10 s" in found(checkpoint_every_steps=100)
    assert "the host takes longer to launch it" in found(Cost(True, seconds={"memory": 1e-6}))
    assert "the loop while.3 was counted once" in found(dataclasses.replace(slow, unknown_loops=("while.3",)))


ISSUE = """fits flops hbm_bytes temp_bytes argument_bytes host_bytes_per_step compile_seconds roofline_seconds bound_by
images_per_second total_hours"""


def test_json_and_table(distilled, monkeypatch):
    monkeypatch.setattr(planning, "compile_step", priced(planning.compile_step))
    one = plan("tiny", resolved(distilled), V5E, batches=[10])
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
    assert "250 ms" in text and "memory" in text and "all networks on v5e:2x4: 0.00 hours, 0.01 US dollars" in text
    assert max(map(len, text.splitlines())) <= 120
    beside = command.report([one, dataclasses.replace(one, slice=dataclasses.replace(V5E, name="v6e:2x4"))], None)
    assert "student v5e:2x4" in beside and "student v6e:2x4" in beside


def priced(compile_step):
    """Compiles for the CPU, and takes it for a chip that needs a quarter of a second."""

    def compiled(step, args, where, resident_bytes=0):
        cost, text = compile_step(step, args, CPUS, resident_bytes)
        return dataclasses.replace(cost, seconds={"arithmetic": 0.125, "memory": 0.25}), text

    return compiled


def test_a_step_that_the_compiler_finds_no_room_for(distilled, monkeypatch):
    def refused(*args):
        return Cost(False, refused="RESOURCE_EXHAUSTED: Ran out of memory"), ""

    monkeypatch.setattr(planning, "compile_step", refused)
    one = plan("tiny", resolved(distilled), V5E)
    assert not one.student.fits and one.total_hours is None
    assert "the compiler finds no room: RESOURCE_EXHAUSTED" in command.report([one], 1.0)


def test_a_step_that_needs_more_than_the_chip_has(distilled):
    small = dataclasses.replace(CPUS, chip=chips.Chip(1e12, 1e12, 20_000, 1e9, 1e9))
    one = plan("tiny", resolved(distilled), small, with_evaluation=False)
    assert not one.student.fits and one.student.largest_batch < one.student.batch_per_chip
    assert "NO, " in command.report([one], None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:2x4", "there is no such slice; did you mean v5e:2x4"),
        ("v5e", "there is no such slice; did you mean v5e"),
        ("v5e:2by4", "there is no such slice"),
        ("h100:8", "XLA compiles for a GPU only where there is one"),
        ("cpu:x", "expected cpu, or cpu:8"),
        ("cpu:99", "this process has 8 CPU devices; XLA_FLAGS"),
    ],
)
def test_slices_that_there_are_not(name, message):
    with pytest.raises(ConfigError, match=message) as error:
        chips.open_slice(name)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu():
    with pytest.raises(ConfigError, match=r"needs libtpu, which compiles for it: pip install 'big_distill\[tpu\]'"):
        chips.open_slice("v5e:2x4")


def test_batches_that_cannot_be_split(distilled):
    distilled.accumulate_steps = 5
    with pytest.raises(ConfigError, match="--batches: 8 images a chip cannot be split in 5"):
        plan("tiny", resolved(distilled), CPUS, batches=[8])


def test_the_command(tmp_path):
    """In a process of its own, which makes its own eight devices: a table's figures, and the text that they are of."""
    text = tmp_path / "step.hlo"
    flags = ["--config=configs/mnist_teacher.py:smoke", "--topology=cpu:8", "--json", f"--dump_hlo={text}", "--noeval"]
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    root = CONFIGS[0].parents[1]
    environment |= {"PYTHONPATH": str(root), "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    arguments = [sys.executable, "-m", "big_distill.plan", *flags]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["topology"], found["num_chips"], found["batch_per_chip"], found["fits"]) == ("cpu:8", 8, 1, True)
    assert text.read_text().startswith("HloModule") and found["evaluation"] is None


@needs_libtpu
def test_libtpu_refuses_with_the_nearest_names():
    with pytest.raises(ConfigError, match=r"libtpu refuses it .*; did you mean v5e:"):
        chips.open_slice("v5e:3x3")


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "num_chips", "cores"), [("v5e:2x4", 8, 1), ("v5e:1x1", 1, 1), ("v4:2x2x1", 4, 1), ("v3:2x2", 4, 2)]
)
def test_slices_by_libtpu(name, num_chips, cores):
    where = chips.open_slice(name)
    assert (where.num_chips, where.devices_per_chip, where.platform) == (num_chips, cores, "tpu")


@needs_libtpu
def test_a_small_config_for_a_tpu():
    where = chips.open_slice("v5e:2x4")
    one = plan("digits_fm", resolved(load_config(CONFIGS[0].with_name("digits_fm.py")), where), where)
    student = one.student
    assert student.fits and student.train.bound_by and student.train.collective_bytes["all-reduce"] > 4 * 3_000
    assert 0 < student.train.hbm_bytes < 1e8 and not student.train.unknown_loops
    assert one.total_hours > 0
    convolutions = re.findall(
        r'op_name="jit\(train_step\)/([\w()]*)/.*conv_general_dilated', one.hlo.partition("ENTRY")[2]
    )
    forward = [name for name in convolutions if not name.startswith("transpose")]
    assert forward == ["CNN"] * 2 + ["jvp(CNN)"] * 2, "the teacher comes first"


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_for_a_tpu(path):
    where = chips.open_slice("v5e:2x4")
    one = plan(path.stem, resolved(load_config(path), where), where)
    assert all(stage.fits and stage.train.flops > 0 and not stage.train.unknown_loops for stage in one.stages)

"""Checks what is split over `fsdp`, that this changes only rounding, and that any mesh reads what another wrote."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from processes import saved_steps, state_sha256

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import BIT_DEPTH
from big_distill.data.pipeline import TrainPipeline
from big_distill.errors import Preempted
from big_distill.parallel import sharding
from big_distill.planning.chips import open_slice
from big_distill.planning.estimate import Blueprint
from big_distill.planning.hlo import Module
from big_distill.resolve import resolve
from big_distill.run_dir.checkpoints import Checkpoints
from big_distill.state import path_name
from big_distill.training.computation import build
from big_distill.training.evaluation import evaluate, evaluate_run, open_eval, open_split
from big_distill.training.loop import train_and_evaluate

pytestmark = pytest.mark.usefixtures("eight_devices")


@pytest.fixture
def distilled(distilled, monkeypatch):
    """Lowers the threshold of splitting, so that networks this small are split."""
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    return distilled


def resolved(config, fsdp=1, num_devices=8):
    config.mesh.fsdp = fsdp
    config.teacher.sharded = fsdp > 1 and bool(config.teacher.config)
    return resolve(config, num_devices, "cpu")


def split_axes(tree):
    """Maps paths to the axis along which the array is split over fsdp."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        spec = x.sharding.spec
        found[path_name(path)] = spec.index("fsdp") if "fsdp" in spec else None
    return found


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((1, 1, 512, 2048), 3),
        ((3, 3, 512, 512), 3),
        ((2048, 102), 0),
        ((7, 7, 64, 256), 3),
        ((6, 16386), None),  # nothing that four divides
        ((16385, 8), 1),
        ((32, 2047), None),  # small
        ((32, 2048), 1),
        ((), None),
    ],
)
def test_the_largest_axis_that_can_be_is_split(shape, axis):
    array = jax.ShapeDtypeStruct(shape, jnp.float32)
    wanted = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp")
    assert sharding.rule(sharding.make_mesh(4), array).spec == wanted
    assert sharding.rule(sharding.make_mesh(1), array).spec == PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int
    id: int


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_a_process_has_rows_in_a_row(fsdp):
    """This holds for any fsdp; libtpu lists the devices in the order of the torus."""
    devices = [
        Device(1, 0),
        Device(0, 5),
        Device(1, 2),
        Device(0, 4),
        Device(0, 1),
        Device(0, 3),
        Device(1, 7),
        Device(1, 6),
    ]
    mesh = sharding.make_mesh(fsdp, devices)
    assert mesh.devices.shape == (8 // fsdp, fsdp)
    assert [device.id for device in mesh.devices.flat] == [1, 3, 4, 5, 0, 2, 6, 7]
    mesh = sharding.make_mesh(fsdp)
    rows = sharding.to_devices(mesh, {"label": np.arange(16)})["label"]
    held = {shard.device: np.asarray(shard.data).tolist() for shard in rows.addressable_shards}
    assert [held[device] for device in mesh.devices.flat] == [[2 * i, 2 * i + 1] for i in range(8)]


def test_parameters_optimiser_and_teacher_are_split(distilled):
    config = resolved(distilled, 4)
    found = Blueprint(config, open_slice("cpu:8"))
    state, teacher = split_axes(found.state), split_axes(found.teacher)
    for name in ("params/{}", "opt_state/1/mu/{}", "opt_state/1/nu/{}"):
        axes = [state[name.format(f"{layer}/kernel")] for layer in ("conv1", "conv2")]
        assert axes == [None, 3], (name, state)
    assert state["step"] is None
    assert [axis for name, axis in teacher.items() if name.endswith("conv2/kernel")] == [3]
    distilled.teacher.sharded = False
    whole = Blueprint(resolve(distilled, 8, "cpu"), open_slice("cpu:8"))
    assert set(split_axes(whole.teacher).values()) == {None}
    assert split_axes(whole.state) == state


def test_only_parameters_are_gathered_and_gradients_reduced(distilled):
    """The only activation that travels is mixup's row from the next device; each device updates a part."""
    blueprint = Blueprint(resolved(distilled, 4), open_slice("cpu:8"))
    args = (blueprint.state,), blueprint.teacher, None, blueprint.chunk
    text = blueprint.computation.train_chunk.lower(*args).compile().as_text()
    moved = Module(text).collective_bytes
    assert moved.keys() == {"all-gather", "all-reduce", "collective-permute"}
    trees = blueprint.state.params, blueprint.teacher
    split = [x for tree in trees for x in jax.tree.leaves(tree) if "fsdp" in x.sharding.spec]
    assert moved["all-gather"] == sum(4 * x.size for x in split) > 0
    gradients = sum(4 * x.size for x in jax.tree.leaves(blueprint.state.params))
    assert gradients <= moved["all-reduce"] <= gradients + 200  # the rest are losses and the norm
    assert moved["collective-permute"] <= 8 * 8 * 4


@pytest.mark.full
def test_it_changes_rounding_alone(distilled):
    """Views are the same; losses, scores and weights are too, but for rounding, also for a pruned student."""
    distilled.log_view_hash = True
    distilled.compress.sparsity, distilled.compress.prune_every_steps = 0.5, 1
    distilled.accumulate_steps = 5
    runs = {}
    for fsdp in (1, 4):
        config, mesh = resolved(distilled, fsdp), sharding.make_mesh(fsdp)
        student, source = weights.architecture_of(config, (), None), open_split(config, config.source, "train")
        teacher = teacher_on(mesh, config)
        computation, data = build(config, student, mesh), TrainPipeline(config, source)
        state, seen = computation.begin(computation.init(jax.random.key(0))), []
        assert split_axes(state) == split_axes(computation.abstract_state)
        for chunk in data.chunks(0):
            (state,), (metrics,) = computation.train_chunk(
                (state,), teacher, None, sharding.to_devices(mesh, chunk, axis=1)
            )
            seen.append(metrics)
        assert split_axes(state) == split_axes(computation.abstract_state)
        scores = evaluate(
            computation.eval_step, state.variables, teacher, open_eval(config, "validation", BIT_DEPTH), mesh
        )
        runs[fsdp] = jax.device_get((seen, state.variables, scores))
    (before, whole, wanted), (after, split, found) = runs[1], runs[4]
    assert len({int(metrics["view_hash"][0]) for metrics in before}) == 6
    for one, other in zip(before, after, strict=True):
        assert one["view_hash"] == other["view_hash"]
        for name in ("loss", "grad_norm", "kl"):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-4)
    assert 0 < weights.num_nonzero(whole) < weights.num_params(whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), split, whole)
    assert found == pytest.approx(wanted, rel=1e-3)


def teacher_on(mesh, config):
    """Makes a teacher with untrained weights."""
    architecture = weights.architecture_of(config.teacher.config, (), None)
    variables = architecture.build("float32").init(jax.random.key(1), jnp.zeros(architecture.input_shape))
    network = weights.Network(architecture, variables)
    return teachers.freeze((network,), config, mesh, ())


@pytest.mark.full
def test_any_mesh_reads_what_one_has_written(tiny, tmp_path, monkeypatch, interrupt_after, capsys):
    """The state is split over four devices of eight, then whole on each of them, then split over two."""
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    make_mesh, hashes = sharding.make_mesh, {}
    tiny.eval_every_steps = 6
    for fsdp, num_devices in ((4, 8), (1, 8), (2, 2)):
        config, mesh = resolved(tiny, fsdp, num_devices), make_mesh(fsdp, jax.devices()[:num_devices])
        monkeypatch.setattr(sharding, "make_mesh", lambda fsdp, mesh=mesh: mesh)
        for step, written in hashes.items():
            abstract = build(config, weights.read_architecture(tmp_path), mesh).abstract_state
            with contextlib.closing(Checkpoints(config, tmp_path, read_only=True)) as checkpoints:
                state = checkpoints.restore(step, abstract)
            assert split_axes(state) == split_axes(abstract) and weights.sha256(state) == written
            assert (split_axes(state)["params/conv2/kernel"] is None) == (fsdp == 1)
        interrupt_after(2)
        with pytest.raises(Preempted):
            train_and_evaluate(config, tmp_path)
        step = saved_steps(tmp_path)[-1]
        hashes[step] = state_sha256(tmp_path, step)
    assert list(hashes) == [2, 4, 6]
    assert evaluate_run(tmp_path, "validation", "latest")["num_examples"] == 200
    said = capsys.readouterr().out
    assert "goes on with other numerics, so not bit-exactly (config.mesh.fsdp: 4 -> 1)" in said
    assert "goes on on another machine, so not bit-exactly (num_devices: 8 -> 2)" in said


@pytest.mark.parametrize(
    ("precision", "word"),
    [("default", "DEFAULT"), ("bfloat16", "DEFAULT"), ("tensorfloat32", "HIGH"), ("float32", "HIGHEST")],
)
def test_products_have_the_precision_that_is_asked_for(distilled, precision, word):
    """This holds for both networks, forward and backward, in the train step and the eval step."""
    distilled.matmul_precision = precision
    blueprint = Blueprint(resolved(distilled), open_slice("cpu:8"))
    train = blueprint.computation.train_chunk.lower((blueprint.state,), blueprint.teacher, None, blueprint.chunk)
    evaluation = blueprint.computation.eval_step.lower(blueprint.variables, blueprint.teacher, blueprint.eval_batch)
    for text in (train.as_text(), evaluation.as_text()):
        assert set(re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", text)) == {word}
        assert len(re.findall(r"stablehlo\.(?:dot_general|convolution)", text)) >= 6

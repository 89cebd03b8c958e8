"""Checks stages that make the network smaller, factored or rounded: they resume to the bit, and files are whole."""

import dataclasses

import jax
import networks
import numpy as np
import pytest

import big_distill
from big_distill import weights
from big_distill.config import CompressConfig, Config
from big_distill.errors import ConfigError, Preempted, RunError
from big_distill.export import packing
from big_distill.export.packing import pack
from big_distill.resolve import resolve
from big_distill.training import initial
from big_distill.training.evaluation import evaluate_run
from big_distill.training.loop import train_and_evaluate

FORMS = {
    "channels": {"structure": "channels", "sparsity": 0.5},
    "ranks": {"rank_energy": 0.6},
    "flops": {"rank_flops": 0.7, "integer_bits": 8},
}


def resolved(config):
    return resolve(config, jax.device_count(), "cpu")


@pytest.fixture
def staged(tiny, request):
    """Makes a config of two stages: a dense network, then the same network in another form."""
    tiny.init_config = tiny.copy_and_resolve_references()
    tiny.compress.update(FORMS[getattr(request, "param", "channels")])
    return tiny


@pytest.mark.full
@pytest.mark.parametrize(
    "staged", ["channels", *(pytest.param(form, marks=pytest.mark.slow) for form in ("ranks", "flops"))], indirect=True
)
def test_a_stage_changes_the_network_and_resumes_to_the_bit(staged, train_once, tmp_path, interrupt_after):
    staged.checkpoint_every_steps = 1
    staged.student.activation_bits = 8
    whole = train_once(resolved(staged), tmp_path / "whole")
    dense, small = (weights.load(tmp_path / "whole" / name).architecture.model for name in ("init", ""))
    assert small != dense and small.activation_bits == 8 and (small.ranks or small.features != dense.features)
    interrupt_after(6 + 3)
    with pytest.raises(Preempted):
        train_and_evaluate(resolved(staged), tmp_path / "run")
    resumed = train_and_evaluate(resolved(staged), tmp_path / "run")
    assert resumed["params_sha256"] == whole["params_sha256"] and resumed["resumed_at"] == [3]
    assert evaluate_run(tmp_path / "run", "validation", "latest") == evaluate_run(tmp_path / "run", "validation")
    rows = pack(tmp_path / "run", ["container"], "final", "validation")
    assert rows[0]["accuracy"] == whole["student"]["accuracy"]
    image = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 1), np.uint8)
    packed = big_distill.load(tmp_path / "run" / "student.bdz")
    np.testing.assert_array_equal(packed.predict(image), big_distill.load(tmp_path / "run").predict(image))


@pytest.mark.full
def test_half_of_the_channels(staged, tmp_path):
    staged.compress.update(scope="layer", sparsity=0.0, layer_sparsity=("conv2/kernel=0.5",))
    summary = train_and_evaluate(resolved(staged), tmp_path / "run")
    network = weights.load(tmp_path / "run")
    assert network.architecture.model.features == (4, 4)
    assert summary["student"]["num_params"] == 3 * 3 * 4 + 4 + 3 * 3 * 4 * 4 + 4 + 2 * 2 * 4 * 10 + 10
    row = pack(tmp_path / "run", ["safetensors"], "final", "validation")[0]
    before = weights.num_params(weights.load(tmp_path / "run" / "init").variables)
    assert row["ratio"] == pytest.approx(4 * before / row["bytes"]), "to the network that the config names"


@pytest.mark.full
def test_what_is_pruned_next_are_the_factors(staged, tmp_path):
    first = staged.copy_and_resolve_references()
    first.compress.update(structure="weights", sparsity=0.0, rank_energy=0.5)
    staged.init_config = first
    staged.compress.update(structure="weights", sparsity=0.5, layers=".*/(first|last|core)/kernel", prune_end=0.0)
    train_and_evaluate(resolved(staged), tmp_path / "run")
    network = weights.load(tmp_path / "run")
    assert network.architecture.model.ranks
    params = network.variables["params"]
    factors = [x for p, x in jax.tree.leaves_with_path(params) if len(p) == 3]
    assert sum(int((x == 0).sum()) for x in factors) == round(0.5 * sum(x.size for x in factors))


@pytest.mark.full
def test_from_its_own_teacher(tiny, tmp_path):
    tiny.teacher.config = tiny.copy_and_resolve_references()
    tiny.init_from = "teacher"
    tiny.objective.name = "function_matching"
    tiny.total_steps, tiny.optimizer.lr, tiny.optimizer.weight_decay = 3, 1e-12, 0.0
    summary = train_and_evaluate(resolved(tiny), tmp_path / "run")
    assert summary["agreement"] == 1 and summary["kl"] < 1e-6
    assert not (tmp_path / "run" / "init").exists()
    tiny.teacher.path = str(tmp_path / "run" / "teacher")
    again = train_and_evaluate(resolved(tiny), tmp_path / "again")
    assert again["params_sha256"] == summary["params_sha256"]
    tiny.teacher.input_mean = (0.1,)
    train_and_evaluate(resolved(tiny), tmp_path / "brighter")
    assert weights.load(tmp_path / "brighter").architecture.card.mean == (0.1,), "it sees what its teacher sees"


@pytest.mark.full
def test_all_stages_have_one_teacher(tiny, tmp_path):
    teacher = tiny.copy_and_resolve_references()
    tiny.objective.name = "hinton"
    first = tiny.copy_and_resolve_references()
    first.teacher.path = "teacher"
    second = first.copy_and_resolve_references()
    second.init_config = first
    tiny.init_config = second
    tiny.teacher.config = teacher
    summary = train_and_evaluate(resolved(tiny), tmp_path / "run")
    first = weights.load(tmp_path / "run" / "init")
    assert first is not None and summary["teacher"]["accuracy"] is not None
    assert [path.parent for path in (tmp_path / "run").rglob("teacher")] == [tmp_path / "run"]
    inner, outer = (evaluate_run(tmp_path / "run" / name, "validation") for name in ("init/init", ""))
    assert inner["teacher_accuracy"] == outer["teacher_accuracy"]


def test_fewer_flops_are_computed():
    network = networks.make_example("lenet5").network
    run = Config(num_classes=7, compress=CompressConfig(rank_flops=0.3))
    assert packing._flops(initial._factored(run, network)) < 0.35 * packing._flops(network)


@pytest.mark.full
def test_mistakes_are_named(tiny, tmp_path):
    tiny.teacher.path = "teacher"
    with pytest.raises(ConfigError, match=r"config.teacher.path='teacher' is for a first stage"):
        resolved(tiny)
    tiny.init_from, tiny.teacher.path, tiny.objective.name = "teacher", "a,b", "hinton"
    with pytest.raises(ConfigError, match=r"config.init_from='teacher': a run starts from one network, not from 'a,b'"):
        resolved(tiny)
    tiny.teacher.path, tiny.objective.name = None, "cross_entropy"
    tiny.init_from = "teacher"
    with pytest.raises(
        ConfigError, match=r"config.init_from='teacher': there is no teacher; set config.teacher.config"
    ):
        resolved(tiny)
    tiny.teacher.config = tiny.copy_and_resolve_references()
    tiny.teacher.config.init_from = None
    tiny.teacher.config.student.features = (4, 9)
    tiny.objective.name = "function_matching"
    with pytest.raises(
        ConfigError, match=r"config.teacher.config.student.features=\(4, 9\) differs from config.student"
    ):
        resolved(tiny)
    tiny.teacher.config = None
    tiny.init_from = None
    tiny.objective.name = "cross_entropy"
    tiny.init_config = tiny.copy_and_resolve_references()
    tiny.init_config.teacher.path, tiny.init_config.objective.name = "teacher", "hinton"
    with pytest.raises(ConfigError, match=r"config.init_config.teacher.path='teacher': there is no teacher"):
        resolved(tiny)
    tiny.init_config.teacher.path, tiny.init_config.objective.name = None, "cross_entropy"
    tiny.compress.update(structure="channels", sparsity=0.5, layers="fc9/kernel")
    with pytest.raises(ConfigError, match=r"config.compress.layers: 'fc9/kernel' matches no kernel"):
        train_and_evaluate(resolved(tiny), tmp_path / "run")
    tiny.compress.layers = ".*"
    tiny.compress.update(structure="weights", sparsity=0.0, rank_flops=0.01)
    with pytest.raises(ConfigError, match=r"config.compress.rank_flops=0.01: even ranks of one need more"):
        train_and_evaluate(resolved(tiny), tmp_path / "other")


def test_another_network_is_refused(tiny, tmp_path):
    train_and_evaluate(resolved(tiny), tmp_path / "run")
    tiny.init_from = str(tmp_path / "run")
    tiny.student.features = (4, 9)
    with pytest.raises(RunError, match=r"run does not fit this student: its features is \(4, 8\), config.student.feat"):
        train_and_evaluate(resolved(tiny), tmp_path / "next")
    assert dataclasses.asdict(weights.load(tmp_path / "run").architecture.model)["features"] == (4, 8)

"""Checks objectives with variables of their own: a projection that is trained, a queue that moves on.

An objective's variables are trained, saved, split and resumed as the student's are. No file of the student has them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.errors import ConfigError, Preempted
from big_distill.export import packing
from big_distill.parallel import sharding
from big_distill.resolve import resolve
from big_distill.run_dir.checkpoints import Checkpoints
from big_distill.run_dir.metrics import read_metrics
from big_distill.step import objectives
from big_distill.step.objectives import Objective
from big_distill.training.computation import build
from big_distill.training.loop import train_and_evaluate


def fitnets(config):
    """Adds 1/2 mean |r(student's map) - teacher's map|^2 to function matching: Romero et al. 2015, arXiv 1412.6550."""
    matching = objectives.function_matching(config)

    def init(rng, student, targets):
        shape = student.maps[-1].shape[-1], targets.teachers[0].maps[-1].shape[-1]
        return {"params": {"projection": jax.random.normal(rng, shape) / np.sqrt(shape[0])}}

    def loss(variables, student, targets, rng):
        losses, _, _ = matching.loss({}, student, targets, rng)
        hint = student.maps[-1] @ variables["params"]["projection"] - targets.teachers[0].maps[-1]
        hint = jnp.mean(jnp.square(hint), (1, 2, 3)) / 2
        return losses + hint, {}, {"hint": jnp.mean(hint)}

    return Objective(frozenset({"logits", "maps"}), loss, init)


def seed(config):
    """Matches similarities to a queue of the teacher's outputs: after Fang et al. 2021, "SEED" (arXiv 2101.04731)."""

    def init(rng, student, targets):
        return {"stats": {"queue": jax.random.normal(rng, (64, targets.logits.shape[-1]))}}

    def loss(variables, student, targets, rng):
        queue = variables["stats"]["queue"]
        losses = objectives.kl_divergence(targets.logits @ queue.T, student.logits @ queue.T)
        return losses, {"queue": jnp.concatenate([targets.logits, queue])[: len(queue)]}, {}

    return Objective(frozenset({"logits"}), loss, init)


def resolved(config, num_devices=8):
    return resolve(config, num_devices, "cpu")


@pytest.fixture
def hinted(distilled):
    distilled.objective.name = f"{__name__}:fitnets"
    return distilled


def saved_of_objective(workdir, config, step):
    """Reads the objective's variables from a checkpoint."""
    mesh = sharding.make_mesh(config.mesh.fsdp)
    run = build(config, weights.read_architecture(workdir), mesh, teachers.load(config, workdir, mesh, ()))
    with Checkpoints(config, workdir) as checkpoints:
        return checkpoints.restore(step, run.abstract_state).objective


@pytest.mark.full
def test_a_projection_is_trained_and_is_in_no_file(hinted, tmp_path):
    config = resolved(hinted, 1)
    train_and_evaluate(config, tmp_path / "run")
    before, after = (saved_of_objective(tmp_path / "run", config, step) for step in (3, 6))
    assert before["params"]["projection"].shape == (8, 16)
    assert np.any(before["params"]["projection"] != after["params"]["projection"])
    hints = [line["train/hint"] for line in read_metrics(tmp_path / "run") if "train/hint" in line]
    assert len(hints) == 6 and np.isfinite(hints).all()
    assert not [name for name in weights.arrays_of(weights.load(tmp_path / "run")) if "projection" in name]
    packing.pack(tmp_path / "run", ["container", "safetensors"], "final", "validation")
    for suffix in ("bdz", "safetensors"):
        assert weights.sha256(weights.load(tmp_path / "run" / f"student.{suffix}").variables) == weights.sha256(
            weights.load(tmp_path / "run").variables
        )


@pytest.mark.full
def test_a_projection_is_split_as_the_student_is(hinted, eight_devices, monkeypatch, tmp_path, interrupt_after):
    """It is split over two of eight devices; the run is as with whole ones, and it resumes to the bit."""
    monkeypatch.setattr(sharding, "MIN_SIZE", 64)
    states = []
    for fsdp in (1, 2):
        hinted.mesh.fsdp = fsdp
        config = resolved(hinted)
        train_and_evaluate(config, tmp_path / f"{fsdp}")
        states.append(saved_of_objective(tmp_path / f"{fsdp}", config, 6))
    whole, split = states
    assert split["params"]["projection"].sharding.spec == jax.sharding.PartitionSpec(None, "fsdp")
    np.testing.assert_allclose(whole["params"]["projection"], split["params"]["projection"], rtol=1e-4, atol=1e-6)
    interrupt_after(6 + 4)
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path / "stopped")
    train_and_evaluate(config, tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, split, saved_of_objective(tmp_path / "stopped", config, 6))


def test_a_mistake_shows_before_the_teacher_is_trained(hinted, tmp_path):
    """The mistake is a teacher without maps."""
    hinted.teacher.config.student.name, hinted.teacher.config.student.features = "mlp", (8,)
    with pytest.raises(ConfigError, match="it reads 'maps', which a teacher does not have"):
        train_and_evaluate(resolved(hinted), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.full
@pytest.mark.parametrize("name", ["fitnets", "seed"])
def test_what_an_objective_keeps_is_resumed_to_the_bit(distilled, train_once, tmp_path, interrupt_after, name):
    distilled.objective.name = f"{__name__}:{name}"
    config = resolved(distilled)
    whole = train_once(config, tmp_path / "whole")
    interrupt_after(6 + 4)  # the teacher's six steps, then four
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path / "stopped")
    resumed = train_and_evaluate(config, tmp_path / "stopped")
    assert resumed["resumed_at"] == [4] and resumed["params_sha256"] == whole["params_sha256"]
    wanted, found = (saved_of_objective(tmp_path / run, config, 6) for run in ("whole", "stopped"))
    assert jax.tree.leaves(wanted)
    jax.tree.map(np.testing.assert_array_equal, wanted, found)


@pytest.mark.full
def test_a_queue_moves_on_with_every_part(distilled, tmp_path):
    """The batch has two parts of twenty; what came last is in front."""
    distilled.objective.name, distilled.accumulate_steps = f"{__name__}:seed", 2
    config = resolved(distilled, 1)
    train_and_evaluate(config, tmp_path / "run")
    before, after = (saved_of_objective(tmp_path / "run", config, step)["stats"]["queue"] for step in (3, 6))
    assert before.shape == after.shape == (64, 10) and not np.any(np.all(before[:60] == after[:60], 1))

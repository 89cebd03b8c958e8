"""Checks that a loss or gradient that is not finite, at any step, updates nothing and is reported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from processes import ROOT, outcome
from tiers import cases

from big_distill.config.template import load_config
from big_distill.data.pipeline import TrainPipeline
from big_distill.data.sources import open_source
from big_distill.errors import NonFiniteError, Preempted
from big_distill.resolve import resolve
from big_distill.training.loop import train_and_evaluate

LAM = np.float32(0.625)  # no step draws it: it marks an infinite gradient


def fragile(config):
    """Makes a cross-entropy whose gradient alone is not finite where the images were mixed by LAM."""

    def loss(student_logits, teacher_logits, targets):
        struck = jnp.any(targets == LAM)
        one_or_zero = jnp.sqrt(jnp.where(struck, 0 * jnp.sum(student_logits), 1.0))  # the gradient at zero is infinite
        return optax.softmax_cross_entropy(student_logits, targets) + jnp.where(struck, one_or_zero, 0.0)

    return loss


def config_of(**optimizer):
    config = load_config(ROOT / "configs" / "digits_fm.py").teacher.config
    config.student.features = (4, 8)
    config.batch_size, config.optimizer.warmup_steps = 40, 1
    config.total_steps, config.log_every_steps = 12, 5
    config.eval_every_steps = config.checkpoint_every_steps = 4
    config.objective.name = f"{__name__}:fragile"
    config.optimizer.update(optimizer)
    return resolve(config, jax.device_count(), "cpu")


@pytest.fixture
def strike(monkeypatch):
    """Returns `strike({step: lam})`, which sets the lam of mixup of these steps, counted from 1."""
    honest = TrainPipeline.batch

    def arm(lams):
        def batch(self, step):
            made = honest(self, step)
            return {**made, "lam": np.float32(lams[step + 1])} if step + 1 in lams else made

        monkeypatch.setattr(TrainPipeline, "batch", batch)

    return arm


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    train_and_evaluate(config_of(), workdir)
    return outcome(workdir)


@pytest.mark.parametrize(
    ("step", "lam"), cases((7, LAM), full=[(1, np.nan), (4, LAM), (7, np.nan), (8, np.nan), (12, LAM)])
)
def test_nothing_is_updated_and_the_run_can_go_on(whole, tmp_path, strike, step, lam):
    config = config_of()
    strike({step: lam, step + 2: lam})
    with pytest.raises(NonFiniteError, match=f"the loss or gradient of step {step} is not finite") as error:
        train_and_evaluate(config, tmp_path)
    source = open_source(config.source, "train", num_classes=10, image_size=8, channels=1)
    names = TrainPipeline(config, source).example_names(step - 1)
    assert json.loads((tmp_path / f"nonfinite_step_{step}.json").read_text()) == {
        "step": step, "skipped": False, "examples": names
    }  # fmt: skip
    assert names[0] in str(error.value)
    strike({})
    summary = train_and_evaluate(config, tmp_path)
    assert summary["resumed_at"] == ([(step - 1) // 4 * 4] if step > 4 else [])
    assert outcome(tmp_path) == whole


def test_skipping_is_bounded(tmp_path, strike):
    strike({2: np.nan, 6: LAM, 9: np.nan})
    with pytest.raises(NonFiniteError, match=r"step 9 .* config.optimizer.max_skipped_steps=2 were skipped before it"):
        train_and_evaluate(config_of(max_skipped_steps=2), tmp_path)
    reports = sorted(tmp_path.glob("nonfinite_step_*.json"))
    assert [json.loads(path.read_text())["skipped"] for path in reports] == [True, True, False]


@pytest.mark.full
def test_a_skipped_step_is_left_out_and_survives_a_resume(whole, tmp_path, strike, interrupt_after, capsys):
    config = config_of(max_skipped_steps=2)
    strike({2: np.nan, 6: LAM})
    summary = train_and_evaluate(config, tmp_path / "at once")
    assert summary["skipped_steps"] == 2 and summary["steps"] == 12
    assert "step 6 is not finite; nothing was updated" in (said := capsys.readouterr().out)
    assert "skipped, number 1 of at most 2" in said and "skipped, number 2 of at most 2" in said
    assert outcome(tmp_path / "at once")[""]["state"] != whole[""]["state"]
    interrupt_after(7)
    with pytest.raises(Preempted):
        train_and_evaluate(config, tmp_path / "parts")
    train_and_evaluate(config, tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "at once")

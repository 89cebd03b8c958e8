"""Checks which checkpoint is the best."""

import jax.numpy as jnp
import pytest

from big_distill.config import Config, SourceConfig
from big_distill.run_dir.checkpoints import Checkpoints
from big_distill.state import TrainState

SCORES = {
    1: {"accuracy": 0.9, "macro_f1": 0.2, "nll": 0.5},
    2: {"accuracy": 0.5, "macro_f1": 0.8, "nll": 0.4},
    3: {"accuracy": 0.5, "macro_f1": 0.1, "nll": 0.1},
    4: {"accuracy": 0.5, "macro_f1": 0.2, "nll": 0.9},
}


def checkpoints(workdir, select_by, **changes):
    source = SourceConfig(name="digits", validation="validation")
    return Checkpoints(Config(keep_latest=1, keep_best=1, source=source, select_by=select_by, **changes), workdir)


def save(into, scores):
    for step, values in scores.items():
        number = jnp.asarray(step)
        into.save(step, TrainState(number, {"w": jnp.ones(2)}, {}, {}, {}, number), {"step": step}, values)


@pytest.mark.parametrize(("select_by", "best"), [("accuracy", 1), ("macro_f1", 2), ("nll", 3)])
def test_the_best_is_chosen_by_the_metric_that_was_asked_for(tmp_path, select_by, best):
    with checkpoints(tmp_path, select_by) as kept:
        save(kept, SCORES)
        assert kept.best_step() == best and kept.all_steps() == [best, 4], "the best and the newest are kept"


def test_a_resume_may_choose_by_another_metric(tmp_path):
    with checkpoints(tmp_path, "accuracy") as kept:
        save(kept, {1: SCORES[1], 3: SCORES[3]})
        assert kept.best_step() == 1
    with checkpoints(tmp_path, "nll") as kept:
        assert kept.best_step() == 3
        save(kept, {4: SCORES[4]})
        assert kept.best_step() == 3 and kept.all_steps() == [3, 4]


def test_a_step_without_the_metric_is_not_the_best(tmp_path):
    with checkpoints(tmp_path, "kl") as kept:
        save(kept, {1: {"accuracy": 0.9}, 2: {"accuracy": 0.9, "kl": float("nan")}})
        assert kept.best_step() is None
        save(kept, {3: {"kl": 7.0}, 4: None})
        assert kept.best_step() == 3

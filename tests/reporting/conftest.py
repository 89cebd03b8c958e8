"""Makes a run with a teacher of its own and packed files, for the tests that read it."""

import shutil

import jax
import pytest

from big_distill.config.template import load_config
from big_distill.export import packing
from big_distill.resolve import resolve
from big_distill.training.loop import train_and_evaluate


@pytest.fixture(scope="session")
def finished(request, tmp_path_factory):
    """Returns the directory of the run, which no test may change."""
    config = load_config(request.config.rootpath / "configs" / "digits_fm.py")
    config.student.features, config.teacher.config.student.features = (4, 8), (8, 16)
    for stage in (config, config.teacher.config):
        stage.batch_size, stage.optimizer.warmup_steps, stage.optimizer.lr = 40, 2, 1e-2
        stage.total_steps, stage.log_every_steps, stage.eval_every_steps = 120, 10, 40
    workdir = tmp_path_factory.mktemp("report") / "run"
    train_and_evaluate(resolve(config, jax.device_count(), "cpu"), workdir)
    packing.pack(workdir, ["container", "safetensors"], "final", "test")
    packing.pack(workdir, ["container"], "final", "test", precision="bfloat16")
    return workdir


@pytest.fixture
def run(finished, tmp_path):
    """Copies the run without its checkpoints, so that a test may change it."""
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "events.*"))
    return tmp_path / "run"

"""Sets up all tests: eight fake CPU devices, programs that compile fast, and a cache of them in `.pytest_cache`.

Fuzz tests run the same 200 cases every time; with --hypothesis-profile=long they run 10,000 others.
"""

import functools
import os
import pathlib

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import interruption
import jax
import pytest
from absl import flags
from hypothesis import HealthCheck, settings

from big_distill.config.template import template
from big_distill.parallel import sharding

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update("jax_compilation_cache_dir", str(ROOT / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
flags.FLAGS.mark_as_parsed()
fuzzing = settings(deadline=None, suppress_health_check=list(HealthCheck))  # `mutations.bounded` limits the time
settings.register_profile("short", fuzzing, max_examples=200, derandomize=True, database=None)
settings.register_profile("long", fuzzing, max_examples=10_000)
settings.load_profile("short")


@pytest.fixture
def one_device(monkeypatch):
    """Makes a test run on the first device alone."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", lambda fsdp=1: mesh)


@pytest.fixture
def interrupt_after(monkeypatch):
    """Returns `interrupt_after(num_steps, number=SIGTERM)`: see `interruption.interrupt_after`."""
    return functools.partial(interruption.interrupt_after, monkeypatch)


@pytest.fixture
def distilled(tiny):
    """Makes `tiny` distil from a wider CNN that is trained first."""
    teacher = tiny.copy_and_resolve_references()
    teacher.student.features = (8, 16)
    tiny.objective.name = tiny.view.regime = "function_matching"
    tiny.teacher.config = teacher
    return tiny


@pytest.fixture
def tiny():
    """Builds an unresolved config that trains a small CNN on the digits for a few steps, supervised."""
    config = template()
    config.num_classes = 10
    config.batch_size = 40
    config.total_steps = 6
    config.log_every_steps = 1
    config.eval_every_steps = 3
    config.student.name = "cnn"
    config.student.features = (4, 8)
    config.objective.name = "cross_entropy"
    config.source.name = "digits"
    config.source.num_train_examples = 1200
    config.source.validation = "validation"
    config.source.test = "validation"  # 200 examples: half as many to evaluate
    config.view.image_size = 8
    config.view.channels = 1
    config.view.area_min = 0.5
    return config

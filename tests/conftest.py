"""Sets up all tests: their tiers, fake CPU devices, programs that compile fast, and a cache of them.

Tests marked `full` run with --all alone. Fuzz tests run the same 25 cases every time, with --all the same 200, and with
--hypothesis-profile=long 10,000 others. Compiled programs are kept in `.pytest_cache/jax`, which may be deleted.

A run takes one device, although there are eight: `eight_devices` is for tests of several.
"""

import functools
import json
import os
import pathlib
import shutil
import tempfile
from importlib.metadata import version

os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true "
    # JAX 0.10 compiles in two thirds of the time so; later ones do not know this flag.
    + ("--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import interruption
import jax
import pytest
from absl import flags
from hypothesis import HealthCheck, settings

from big_distill.config import to_dict
from big_distill.config.template import template
from big_distill.parallel import sharding
from big_distill.training.loop import train_and_evaluate

ROOT = pathlib.Path(__file__).parents[1]

CACHE = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)  # what takes less is made sooner than read
flags.FLAGS.mark_as_parsed()
fuzzing = settings(deadline=None, suppress_health_check=list(HealthCheck))  # `mutations.bounded` has the time
settings.register_profile("fast", fuzzing, max_examples=25, derandomize=True, database=None)
settings.register_profile("all", fuzzing, max_examples=200, derandomize=True, database=None)
settings.register_profile("long", fuzzing, max_examples=10_000)

FAST = "not full and not slow and not soak"  # as in pyproject.toml
every_device = sharding.make_mesh


def first_device(fsdp=1, devices=None):
    """Makes a mesh of the first device, unless devices are named."""
    assert fsdp == 1 or devices is not None, "the test needs the fixture eight_devices"
    return every_device(fsdp, devices if devices is not None else jax.devices()[:1])


sharding.make_mesh = first_device


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="Runs the tests marked full, too, and 200 cases a fuzz test.")


def pytest_configure(config):
    """Chooses the tier. A test that is named (FILE::test) runs whatever its tier, and -m chooses for itself."""
    named = any("::" in argument for argument in config.args)
    if (config.getoption("--all") or named) and config.option.markexpr == FAST:
        config.option.markexpr = "" if named else "not slow and not soak"
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("all" if config.getoption("--all") else "fast")


@pytest.fixture
def eight_devices(monkeypatch):
    """Lets runs take all eight devices."""
    monkeypatch.setattr(sharding, "make_mesh", every_device)


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory):
    """Keeps the runs that `train_once` has trained in this session, by config."""
    return tmp_path_factory.mktemp("finished"), {}


@pytest.fixture
def train_once(finished_runs):
    """train_once(config, workdir): trains a run, or copies it if this session has trained it; returns its summary."""
    directory, places = finished_runs

    def train(config, workdir):
        key = json.dumps(to_dict(config), sort_keys=True), sharding.make_mesh, sharding.MIN_SIZE
        if key not in places:
            place = pathlib.Path(tempfile.mkdtemp(dir=directory)) / "run"
            train_and_evaluate(config, place)
            places[key] = place
        shutil.copytree(places[key], workdir)
        return json.loads((workdir / "summary.json").read_text())

    return train


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

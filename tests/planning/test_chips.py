"""Checks slices by their names, and what compiles for them."""

import importlib.util
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from big_distill.errors import ConfigError
from big_distill.planning import chips


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5:2x4", "there is no such slice; did you mean v5e:2x4"),
        ("v5e", "there is no such slice; did you mean v5e"),
        ("v5e:2by4", "there is no such slice"),
        ("v5e:8", "there is no such slice"),
        ("h100", "there is no such slice; did you mean h100:"),
        ("h200:8", "there is no such slice; did you mean h100:8"),
        ("h100:2x4", "there is no such slice"),
        ("v5litepod-8", "there is no such slice; did you mean v5e:2x4?"),
        ("v4-8", "there is no such slice; did you mean v4:2x2x1?"),
        ("v4:2x2", "v4 has 3 dimensions, as in v4:2x2x1"),
        ("v5e:2x4x1", "v5e has 2 dimensions, as in v5e:2x2"),
        ("v5e:30000x30000", "expected at most 16,384 chips"),
        ("h100:16", "expected 1 to 8, the GPUs of one machine"),
        ("h100:0", "expected 1 to 8"),
        ("cpu:x", "expected cpu, or cpu:8"),
        ("cpu:", "expected cpu, or cpu:8"),
        ("cpu:0", "expected cpu, or cpu:8"),
        ("cpu:1025", "expected cpu, or cpu:8 for eight devices; at most 1,024"),
        ("cpu:" + "9" * 5000, "999..."),
        ("cpu:99", "this process has 8 CPU devices; XLA_FLAGS"),
    ],
)
def test_slices_that_there_are_not(name, message):
    with pytest.raises(ConfigError, match=f"^--compare={name[:9]}.*{re.escape(message)}") as error:
        chips.open_slice(name, "--compare")
    assert "\n" not in str(error.value)


def test_a_name_as_people_write_it():
    assert chips.slice_name(" V5E:2x4 ") == "v5e:2x4"
    assert chips.open_slice(" CPU:2").name == "cpu:2"
    assert [chips.num_cpus(name) for name in ("cpu", "cpu:3", "v5e:2x4")] == [1, 3, 0]


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("v5e:2x4", ("libtpu",), "needs libtpu, which compiles for it: pip install 'big_distill[tpu]'"),
        (
            "h100:8",
            ("jax_plugins", "jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"),
            "needs JAX's CUDA plugin, which compiles for it: pip install 'big_distill[cuda]'",
        ),
    ],
)
def test_without_what_compiles_for_it(name, missing, message):
    """The package is hidden in a process of its own, since JAX loads each package once."""
    script = f"""
import importlib.metadata, pkgutil, sys
sys.modules.update(dict.fromkeys({missing}))
importlib.metadata.entry_points = lambda **_: ()
from big_distill import errors
from big_distill.planning import chips
try:
    chips.open_slice({name!r})
except errors.ConfigError as error:
    print(error)
"""
    # JAX passes the path of a libtpu to its child processes.
    environment = {variable: value for variable, value in os.environ.items() if variable != "TPU_LIBRARY_PATH"}
    arguments = [sys.executable, "-c", script]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    assert message in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
class TestWithLibtpu:
    def test_it_refuses_with_the_nearest_names(self):
        with pytest.raises(ConfigError, match=r"libtpu refuses it .*; did you mean v5e:"):
            chips.open_slice("v5e:3x3")

    @pytest.mark.parametrize(
        ("name", "num_chips", "cores"),
        [("v5e:2x4", 8, 1), ("v5e:1x1", 1, 1), ("v4:2x2x1", 4, 1), ("v3:2x2", 4, 2), ("tpu7x:2x2x1", 4, 2)],
    )
    def test_slices(self, name, num_chips, cores):
        where = chips.open_slice(name)
        assert (where.num_chips, where.devices_per_chip, where.platform) == (num_chips, cores, "tpu")

    @pytest.mark.parametrize("kind", chips.TPUS)
    def test_the_memory_of_a_chip_is_what_the_compiler_has(self, kind):
        """The compiler names its memory when it refuses a program that takes a terabyte of every device."""
        where = chips.open_slice(f"{kind}:{chips.TPUS[kind].shapes[1]}")
        mesh = jax.sharding.Mesh(np.array(where.devices), ("data",))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        x = jax.ShapeDtypeStruct((len(where.devices), 1 << 38), "float32", sharding=rows)
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as error:
            jax.jit(lambda x: x + 1).lower(x).compile()
        available = re.search(r"exceeds available HBM \(([\d.]+)G\)", str(error.value))
        words = float(available[1]) * where.devices_per_chip * 2**30
        assert where.chip.memory == pytest.approx(words, rel=0.005)  # it is a little less in later releases


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs JAX's CUDA plugin")
@pytest.mark.parametrize("kind", chips.GPUS)
def test_gpus(kind):
    where = chips.open_slice(f"{kind}:4")
    assert (where.num_chips, where.devices_per_chip, where.platform, len(where.devices)) == (4, 1, "gpu", 4)

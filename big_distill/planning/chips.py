"""Lists the peaks of accelerators, and opens slices of them that need not be there.

Figures of a TPU are Google's, from docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}. Those of v2, and the
int8 of v5p, are from the table of the same chips in `jax.experimental.pallas.tpu`. `ici` is half of the "bidirectional
interconnect bandwidth". If there is none, it is the pod's all-reduce bandwidth divided by its chips, which is the same
number for v5e and v6e; v2 has neither. `memory` is less than the chip has: libtpu 0.0.42 says how much is
available when it refuses a step ("exceeds available HBM (15.75G)"), for both cores together if it lists two.

Figures of a GPU are NVIDIA's, from the data sheets of A100 and H100, SXM, without sparsity; `ici` is NVLink's, one way.
`memory` is the three quarters of it that JAX takes (XLA_PYTHON_CLIENT_MEM_FRACTION). Nothing of this project has run on
a GPU: the compiler is told which one it compiles for (`gpu_targets`), and the plan's figures are its answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.experimental import topologies

from big_distill.errors import ConfigError, close
from big_distill.planning.gpu_targets import GPU_TARGETS


@dataclasses.dataclass(frozen=True)
class Chip:
    """Describes one chip; a figure that is not known is 0.

    flops: bfloat16 operations a second.
    int8_ops: int8 operations a second; the same as `flops` if they are no faster.
    memory: bytes of HBM that a step can have.
    bandwidth: bytes a second of HBM.
    ici: bytes a second that it sends to other chips, and receives.
    shapes: usual shapes of slices, for messages.
    """

    flops: float = 0
    int8_ops: float = 0
    memory: float = 0
    bandwidth: float = 0
    ici: float = 0
    shapes: tuple[str, ...] = ()


_GIB = 1 << 30
_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_3D = ("1x1x1", "2x2x1", "2x2x2")
_MACHINE = ("1", "2", "4", "8")
_MAX_CPUS = 1024  # JAX makes them one by one, each with threads
_MAX_CHIPS = 1 << 14  # no pod has as many
TPUS = {
    "v2": Chip(46e12, 46e12, 2 * 7.48 * _GIB, 716e9, 0, ("1x1", "2x2")),
    "v3": Chip(123e12, 123e12, 2 * 15.48 * _GIB, 900e9, 332e9, ("1x1", "2x2", "4x4")),
    "v4": Chip(275e12, 275e12, 30.75 * _GIB, 1200e9, 269e9, _3D),
    "v5e": Chip(197e12, 393e12, 15.75 * _GIB, 819e9, 200e9, _2D),
    "v5p": Chip(459e12, 918e12, 95.74 * _GIB, 2765e9, 600e9, _3D),
    "v6e": Chip(918e12, 1836e12, 31.25 * _GIB, 1638e9, 400e9, _2D),
    "tpu7x": Chip(2307e12, 2307e12, 2 * 94.75 * _GIB, 7380e9, 600e9, ("1x1x1", "2x2x1")),
}
GPUS = {
    "a100": Chip(312e12, 624e12, 0.75 * 80 * _GIB, 2039e9, 300e9, _MACHINE),
    "a100-40gb": Chip(312e12, 624e12, 0.75 * 40 * _GIB, 1555e9, 300e9, _MACHINE),
    "h100": Chip(989e12, 1979e12, 0.75 * 80 * _GIB, 3350e9, 450e9, _MACHINE),
}
_ENVIRONMENT = {
    # Without these libtpu asks the network which machine it is on, and complains about the answer.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock is on a device; here none is opened
}
_CLOUD_CORES = {"v2": 2, "v3": 2, "v4": 2, "v5litepod": 1, "v5p": 2, "v6e": 1}  # cores of a chip, by the cloud's names
_GPU_OPTIONS = {"xla_gpu_autotune_level": 0}  # autotuning would time kernels on the GPU that is not there


@dataclasses.dataclass(frozen=True)
class Slice:
    """Holds devices to compile for, of the platform 'tpu', 'gpu' or 'cpu', in libtpu's order.

    num_chips: number of chips; v2, v3 and tpu7x have two devices a chip, because libtpu lists their cores.
    chip: peaks of each chip; those of a CPU are not known.
    """

    name: str
    platform: str
    devices: tuple[Any, ...]
    num_chips: int
    chip: Chip
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def devices_per_chip(self) -> int:
        """Returns 1, or 2 if the cores of a chip are devices."""
        return len(self.devices) // self.num_chips


def slice_name(text: str, flag: str = "--topology") -> str:
    """Checks a flag's name of a slice (v5e:2x4, h100:8, cpu, cpu:8) and returns it in lower case; opens nothing.

    Raises:
      ConfigError: a slice that does not exist, whatever is installed.
    """
    name = text.strip().lower()
    kind, colon, shape = name.partition(":")
    if kind == "cpu":
        if colon and not (_is_count(shape) and 1 <= int(shape) <= _MAX_CPUS):
            raise ConfigError(f"{flag}={name}: expected cpu, or cpu:8 for eight devices; at most {_MAX_CPUS:,}")
    elif kind in GPUS and _is_count(shape):
        if not 1 <= int(shape) <= 8:
            raise ConfigError(f"{flag}={name}: expected 1 to 8, the GPUs of one machine")
    elif kind in TPUS and all(map(_is_count, sides := shape.split("x"))) and len(sides) > 1:
        usual = TPUS[kind].shapes[1]
        if len(sides) != usual.count("x") + 1:
            raise ConfigError(f"{flag}={name}: {kind} has {usual.count('x') + 1} dimensions, as in {kind}:{usual}")
        if math.prod(map(int, sides)) > _MAX_CHIPS:
            raise ConfigError(f"{flag}={name}: expected at most {_MAX_CHIPS:,} chips")
    else:
        raise ConfigError(f"{flag}={name}: there is no such slice{_nearest(name)}")
    return name


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def num_cpus(name: str) -> int:
    """Returns how many CPU devices a slice's name asks for."""
    kind, _, count = name.partition(":")
    return int(count or 1) if kind == "cpu" else 0


def open_slice(text: str, flag: str = "--topology") -> Slice:
    """Opens a slice of TPUs or GPUs, which need not be there, or of this machine's CPU devices; see `slice_name`.

    Raises:
      ConfigError: a slice that does not exist, or whose compiler is not installed.
    """
    name = slice_name(text, flag)
    kind, _, shape = name.partition(":")
    if kind in TPUS:
        return _tpus(name, kind, shape, flag)
    return _gpus(name, kind, int(shape), flag) if kind in GPUS else _cpus(name, flag)


def _tpus(name: str, kind: str, shape: str, flag: str) -> Slice:
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if set(shape) <= {"1", "x"} else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # JAX has its two cores as one device
    with _compiler(name, flag, "libtpu", "libtpu", "tpu"):
        devices: list[Any] = topologies.get_topology_desc(name, "tpu", **options).devices
    num_chips = len({tuple(device.coords) for device in devices})
    return Slice(name, "tpu", tuple(devices), num_chips, TPUS[kind])


def _gpus(name: str, kind: str, count: int, flag: str) -> Slice:
    target = {"target_config": GPU_TARGETS[kind], "topology": f"1x1x{count}"}
    with _compiler(name, flag, "XLA", "JAX's CUDA plugin", "cuda"):
        devices = topologies.get_topology_desc(platform="cuda", **target).devices
    return Slice(name, "gpu", tuple(devices), count, GPUS[kind], _GPU_OPTIONS)


@contextlib.contextmanager
def _compiler(name: str, flag: str, compiler: str, package: str, extra: str) -> Iterator[None]:
    """Raises ConfigError if the compiler refuses a slice, or is not installed."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        known = _nearest(name) if "INVALID_ARGUMENT" in reason else ""
        raise ConfigError(f"{flag}={name}: {compiler} refuses it ({reason}){known}") from error
    except (RuntimeError, ImportError) as error:  # a NotImplementedError is a RuntimeError
        message = f"{flag}={name} needs {package}, which compiles for it: pip install 'big_distill[{extra}]'"
        raise ConfigError(f"{message}; no {'TPU' if extra == 'tpu' else 'GPU'} is needed") from error


def _cpus(name: str, flag: str) -> Slice:
    count, cpus = num_cpus(name), jax.devices("cpu")
    if len(cpus) < count:
        raise ConfigError(
            f"{flag}={name}: this process has {len(cpus)} CPU devices; "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} makes as many"
        )
    return Slice(name, "cpu", tuple(cpus[:count]), count, Chip())


def _nearest(name: str) -> str:
    known = [f"{kind}:{shape}" for kind, chip in (TPUS | GPUS).items() for shape in chip.shapes] + ["cpu", "cpu:8"]
    near = _of_cloud(name) or close(name, known, 3) or close(name.partition(":")[0], known, 3)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"


def _of_cloud(name: str) -> list[str]:
    """Finds the slices that Google Cloud gives this name, which has the number of their cores: v5litepod-8."""
    kind, _, cores = name.partition("-")
    if kind not in _CLOUD_CORES or not _is_count(cores):
        return []
    num_chips, kind = int(cores) / _CLOUD_CORES[kind], "v5e" if kind == "v5litepod" else kind
    return [f"{kind}:{shape}" for shape in TPUS[kind].shapes if math.prod(map(int, shape.split("x"))) == num_chips]

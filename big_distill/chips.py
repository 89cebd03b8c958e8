"""What accelerators can do at best, and slices of them that need not be there.

Figures of a chip are Google's, docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}; v2's, and the
int8 of v5p, are from the table of the same chips in `jax.experimental.pallas.tpu`. `ici` is half of the "bidirectional
interconnect bandwidth" or, where there is none, the pod's all-reduce bandwidth divided by its chips, which for v5e and
v6e is the same number; v2 has neither.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from big_distill.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip; 0 where a figure is not known.

    flops: of bfloat16, a second.
    int8_ops: a second; where they are no faster than bfloat16, as many.
    memory: bytes of HBM.
    bandwidth: of HBM, bytes a second.
    ici: bytes a second that it sends to other chips, and receives.
    shapes: of slices that libtpu compiles for, for messages.
    """

    flops: float = 0
    int8_ops: float = 0
    memory: float = 0
    bandwidth: float = 0
    ici: float = 0
    shapes: tuple[str, ...] = ()


_GIB = 1 << 30
CHIPS = {
    "v2": Chip(46e12, 46e12, 16e9, 716e9, 0, ("1x1", "2x2")),
    "v3": Chip(123e12, 123e12, 32 * _GIB, 900e9, 332e9, ("1x1", "2x2", "4x4")),
    "v4": Chip(275e12, 275e12, 32 * _GIB, 1200e9, 269e9, ("1x1x1", "2x2x1", "2x2x2")),
    "v5e": Chip(197e12, 393e12, 16 * _GIB, 819e9, 200e9, ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "16x16")),
    "v5p": Chip(459e12, 918e12, 95 * _GIB, 2765e9, 600e9, ("1x1x1", "2x2x1", "2x2x2")),
    "v6e": Chip(918e12, 1836e12, 32 * _GIB, 1638e9, 400e9, ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "16x16")),
    "tpu7x": Chip(2307e12, 2307e12, 192 * _GIB, 7380e9, 600e9, ("1x1x1", "2x2x1")),
}
_ENVIRONMENT = {
    # Without these libtpu asks the network what machine it is on, and complains about the answer.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # its lock is on a device; here none is opened
}
_GPUS = ("gpu", "cuda", "a100", "h100", "h200", "b200")


@dataclasses.dataclass(frozen=True)
class Slice:
    """Devices to compile for.

    name: what the user calls it: v5e:2x4, cpu:8.
    platform: 'tpu' or 'cpu'.
    devices: in libtpu's order, or of this machine.
    num_chips: v2, v3 and tpu7x have two devices a chip here: libtpu lists the cores.
    chip: what each is worth; of a CPU nothing is known.
    """

    name: str
    platform: str
    devices: tuple[Any, ...]
    num_chips: int
    chip: Chip

    @property
    def devices_per_chip(self) -> int:
        """One, or the two cores of a chip."""
        return len(self.devices) // self.num_chips


def open_slice(name: str) -> Slice:
    """A slice of TPUs, which need not be there (libtpu compiles for it), or so many devices of this machine's CPU.

    Args:
      name: 'v5e:2x4', 'cpu', 'cpu:8'.

    Raises:
      ConfigError: no such slice, or libtpu is not installed.
    """
    kind, _, shape = name.partition(":")
    if kind == "cpu":
        return _cpus(name, shape)
    if kind.lower().startswith(_GPUS):
        raise ConfigError(
            f"--topology={name}: XLA compiles for a GPU only where there is one; --topology=cpu tells FLOPs and sizes"
        )
    if kind not in CHIPS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise ConfigError(f"--topology={name}: there is no such slice{_nearest(name)}")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = {"chips_per_host_bounds": (1, 1, 1)} if set(shape) <= {"1", "x"} else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # its two cores as one device, as JAX has them there
    try:
        devices: list[Any] = topologies.get_topology_desc(name, "tpu", **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        known = _nearest(name) if "INVALID_ARGUMENT" in reason else ""
        raise ConfigError(f"--topology={name}: libtpu refuses it ({reason}){known}") from error
    except (RuntimeError, ImportError) as error:
        raise ConfigError(
            f"--topology={name} needs libtpu, which compiles for it: pip install 'big_distill[tpu]'; no TPU is needed"
        ) from error
    num_chips = len({tuple(device.coords) for device in devices})
    return Slice(name, "tpu", tuple(devices), num_chips, CHIPS[kind])


def _cpus(name: str, count: str) -> Slice:
    if count and not (count.isdecimal() and int(count)):
        raise ConfigError(f"--topology={name}: expected cpu, or cpu:8 for eight devices")
    wanted = int(count or 1)
    there = jax.devices("cpu")
    if len(there) < wanted:
        raise ConfigError(
            f"--topology={name}: this process has {len(there)} CPU devices; "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted} makes as many"
        )
    return Slice(name, "cpu", tuple(there[:wanted]), wanted, Chip())


def _nearest(name: str) -> str:
    known = [f"{kind}:{shape}" for kind, chip in CHIPS.items() for shape in chip.shapes] + ["cpu", "cpu:8"]
    near = difflib.get_close_matches(name, known, 3, 0.4)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"

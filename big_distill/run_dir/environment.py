"""Records the versions and the machine that a session of a run computes with. Only people read them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax

import big_distill

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def environment() -> dict[str, Any]:
    """Returns versions, and this process's machine. Devices are those of all processes, CPUs those that it may use."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "versions": {"big_distill": big_distill.__version__, **versions, "python": platform.python_version()},
        "platform": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "cpu": _cpu(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def machine() -> str:
    """Names the machine that times are measured on: `environment`'s devices and host."""
    here = environment()
    host = f"{here['cpu']}, {here['num_cpus']} CPU{'s' * (here['num_cpus'] != 1)}"
    return host if here["platform"] == "cpu" else f"{here['num_devices']} x {here['device_kind']}, host {host}"


def _cpu() -> str:
    """Returns the CPU's name where Linux tells it, else its kind."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()

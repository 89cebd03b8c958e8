"""Measures `python -m big_distill.main` from its start to its first finished step: the time and the memory."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import measure

ROOT = pathlib.Path(__file__).parents[2]


def rows(effort: measure.Effort) -> Iterator[measure.Row]:
    config = f"configs/digits_fm.py{':smoke' if effort.tiny else ''}"
    results: dict[str, list[dict[str, float]]] = {"cold": [], "compiled before": []}
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(effort.repeats):
            cache = pathlib.Path(scratch) / f"cache{i}"
            for way in results:
                results[way].append(first_step(config, pathlib.Path(scratch) / f"run{i}", cache))
    for way, found in results.items():
        seconds = tuple(one["seconds"] for one in found)
        ratios = tuple(one["seconds"] / cold["seconds"] for one, cold in zip(found, results["cold"], strict=True))
        yield measure.Row("start", config, f"first step, {way}", "s", seconds, ratios)
        processor = tuple(one["cpu_seconds"] for one in found)
        yield measure.Row("start", config, f"its CPU time, {way}", "s", processor)
    memory = tuple(one["peak_bytes"] / 1e6 for one in results["cold"])
    yield measure.Row("start", config, "peak memory, cold", "MB", memory)


def first_step(config: str, workdir: pathlib.Path, cache: pathlib.Path) -> dict[str, float]:
    """Measures seconds to the first step, by the clock and of CPU time, and peak resident bytes; `cache` may be empty.

    The job trains its teacher first, so its first step is a step of the teacher.
    """
    env = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    child = [sys.executable, str(pathlib.Path(__file__).with_name("first_step.py"))]
    began = time.time()
    done = subprocess.run(
        [*child, str(began), f"--config={config}", f"--workdir={workdir}-{cache.name}-{began}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the job failed with status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])

"""Measures a checkpoint: seconds that the loop waits, and seconds until everything is on disk."""

from __future__ import annotations

import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
import measure
import train_steps

from big_distill.config import Config
from big_distill.run_dir.checkpoints import Checkpoints


def rows(effort: measure.Effort) -> Iterator[measure.Row]:
    cases = {"tiny": train_steps.TINY} if effort.tiny else train_steps.CASES
    for name, case in cases.items():
        if not effort.tiny and name not in effort.cases:
            continue
        job = train_steps.Job(case)
        computation = job.build()
        state = computation.begin(computation.init(jax.random.key(0)))
        size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
        stalls, totals = [], []
        with tempfile.TemporaryDirectory() as scratch:
            checkpoints = Checkpoints(Config(keep_latest=1, keep_best=0), pathlib.Path(scratch))
            with checkpoints:
                for step in range(1, effort.repeats + 2):
                    start = time.perf_counter()
                    checkpoints.save(step, state, {"step": step}, None)
                    stalls.append(time.perf_counter() - start)
                    checkpoints.best_step()  # waits for the save
                    totals.append(time.perf_counter() - start)
        label = f"{name}: {size:,.1f} MB"
        yield measure.Row("save", label, "the loop waits", "s", tuple(stalls[1:]))  # the first save starts threads
        yield measure.Row("save", label, "until it is on disk", "s", tuple(totals[1:]))

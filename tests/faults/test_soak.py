"""Checks that memory, open files and threads do not grow in a long run."""

import pathlib
import threading

import jax
import pytest
from processes import ROOT

from big_distill.config.template import load_config
from big_distill.resolve import resolve
from big_distill.run_dir import metrics
from big_distill.training.loop import train_and_evaluate


def resident_bytes():
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.full
@pytest.mark.parametrize(("total_steps", "mebibytes"), [(2_000, 16), pytest.param(10_000, 8, marks=pytest.mark.soak)])
def test_nothing_grows(tmp_path, monkeypatch, total_steps, mebibytes):
    if not pathlib.Path("/proc/self/fd").exists():
        pytest.skip("no /proc here")
    config = load_config(ROOT / "configs" / "digits_fm.py").teacher.config
    config.student.features = (4, 8)
    config.batch_size, config.optimizer.warmup_steps = 40, 1
    config.total_steps, config.log_every_steps = total_steps, 10
    config.eval_every_steps = config.checkpoint_every_steps = 100
    samples, update = [], metrics.Progress.update

    def sampled(self, step):
        update(self, step)
        if step % (total_steps // 10) == 50:  # half-way between two saves
            fds = len(list(pathlib.Path("/proc/self/fd").iterdir()))
            samples.append((step, resident_bytes(), fds, threading.active_count()))

    monkeypatch.setattr(metrics.Progress, "update", sampled)
    train_and_evaluate(resolve(config, jax.device_count(), "cpu"), tmp_path)
    for step, bytes_, fds, threads in samples:
        print(f"step {step:6,}: {bytes_ / 2**20:7.1f} MiB resident, {fds} open files, {threads} threads")
    early, late = samples[1:5], samples[5:]  # memory of allocators still grows at first
    (_, *before), (_, *after) = (map(min, zip(*half, strict=True)) for half in (early, late))  # a save adds some
    assert after[0] - before[0] < mebibytes * 2**20
    saves = (late[0][0] - early[0][0]) // config.checkpoint_every_steps
    assert after[1] - before[1] < saves / 2 and after[2] - before[2] < saves / 2  # no save leaves a file or a thread

"""Checks the files of metrics, and the stopwatch."""

import contextlib
import io
import json
import os
import sys
import threading
import time

import jax
import numpy as np

from big_distill import terminal
from big_distill.run_dir import metrics
from big_distill.run_dir.metrics import MetricsLog, Progress, Stopwatch, read_metrics


def write(workdir, start, steps):
    log = MetricsLog(workdir, start)
    for step in steps:
        log.write(step, {"train/loss": np.float32(step / 3)})
    log.close()


def test_json_lines_and_tensorboard(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    assert [(line["step"], round(line["train/loss"], 3)) for line in read_metrics(tmp_path)] == [
        (1, 0.333),
        (2, 0.667),
        (3, 1.0),
    ]
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert events.read_bytes().count(b"train/loss") == 3


def test_what_is_no_number_is_null(tmp_path):
    """JSON has no NaN. A line of an older version, which may have one, is mended when it is kept."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": NaN}\n')
    log = MetricsLog(tmp_path, 1)
    log.write(2, {"train/loss": np.float32(np.inf)})
    log.close()

    def refuse(name):
        raise AssertionError(name)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["train/loss"] for line in lines] == [None, None]


def test_a_resumed_run_cuts_back(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "train/lo')  # killed while writing
    write(tmp_path, 2, [3])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_stopwatch_leaves_pauses_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    watch = Stopwatch(10.0)
    with watch.paused():  # not running: nothing to pause
        now[0] += 1
    watch.start()
    now[0] += 2
    with watch.paused():
        now[0] += 4
    now[0] += 8
    watch.stop()
    assert watch.seconds == 10 + 2 + 8


def test_off_a_terminal_lines_say_what_is_done_how_fast_and_how_long_it_takes(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(metrics, "reporting", lambda status: lines.append(status) or contextlib.nullcontext())
    progress = Progress("student", 3, 1203, None)
    (status,) = lines
    assert status() == "student: prepares the first step, at step 3 of 1,203"
    now[0] = 100
    progress.note("compiles the step")
    assert status() == "student: compiles the step, at step 3 of 1,203"
    now[0] = 110
    progress.update(4)  # the rate counts from here
    now[0] = 120
    progress.update(204)
    progress.show(1.23456)
    assert status() == "student: step 204 of 1,203, 20 steps/s, 00:49 left, loss 1.235"
    progress.note("evaluates")
    now[0] = 150
    assert status() == "student: evaluates, at step 204 of 1,203, loss 1.235"
    progress.note("")
    now[0] = 160
    assert status() == "student: trains, at step 204 of 1,203, loss 1.235"
    now[0] = 162
    progress.update(205)
    assert status() == "student: step 205 of 1,203, 0.5 steps/s, 33:16 left, loss 1.235"
    progress.close()


def test_a_line_a_period_and_none_after_the_end(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "PERIOD_SECONDS", 0.01)
    with terminal.doing("student: opens its data"):
        while "so far)" not in (said := capsys.readouterr().out):
            time.sleep(0.01)
    assert said.startswith("student: opens its data (00:00 so far)")
    capsys.readouterr()
    time.sleep(0.05)
    assert capsys.readouterr().out == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_says_how_many_steps_are_done(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = Progress("student", 3, 20, None)
    for step in (4, 10, 20):
        progress.update(step)
    progress.close()
    assert not [thread for thread in threading.enumerate() if thread.name.endswith("(report)")]
    assert "student: 100%" in terminal.getvalue() and "| 20/20 [" in terminal.getvalue()


def test_what_libraries_say_about_accelerators_that_are_not_there_is_dropped(monkeypatch, capfd):
    monkeypatch.setattr(jax, "devices", lambda: os.write(2, b"could not determine TPU accelerator type"))
    monkeypatch.setattr(terminal, "_ACCELERATORS", ())
    terminal.start_devices()
    assert capfd.readouterr().err == ""
    monkeypatch.setattr(terminal, "_ACCELERATORS", ("/dev/nul*",))  # one is there: its user must see it
    terminal.start_devices()
    assert capfd.readouterr().err == "could not determine TPU accelerator type"

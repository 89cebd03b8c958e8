"""Checks the files of metrics, and the stopwatch."""

import io
import json
import sys

import numpy as np

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
    assert "student: 100%" in terminal.getvalue() and "| 20/20 [" in terminal.getvalue()

"""Checks that a damaged checkpoint is reported and replaced by the one before, or refused, as the doctor predicts."""

import dataclasses
import json
import re
import shutil

import jax
import pytest
from interruption import interrupt_after
from processes import ROOT, timeless
from tiers import cases

from big_distill.config.template import load_config
from big_distill.errors import Preempted, RunError
from big_distill.files import checksums
from big_distill.reporting.diagnosis import examine
from big_distill.resolve import resolve
from big_distill.run_dir import checkpoints
from big_distill.run_dir.metrics import METRICS_FILE
from big_distill.training.evaluation import evaluate_run
from big_distill.training.loop import train_and_evaluate


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def emptied(path):
    path.write_bytes(b"")


def missing(path):
    path.unlink()


DAMAGES = (truncated, flipped, emptied, missing)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes a config, a run stopped at step 5 with steps 3 and 5 saved, and summary and metrics of a whole run."""
    config = load_config(ROOT / "configs" / "digits_fm.py").teacher.config
    config.student.features = (4, 8)
    config.batch_size, config.optimizer.warmup_steps = 40, 1
    config.total_steps, config.log_every_steps, config.eval_every_steps = 6, 1, 3
    config = resolve(config, jax.device_count(), "cpu")
    directory = tmp_path_factory.mktemp("runs")
    whole = train_and_evaluate(config, directory / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
        interrupt_after(patch, 5)
        train_and_evaluate(config, directory / "stopped")
    assert sorted(checkpoints.verify(directory / "stopped").items()) == [(3, None), (5, None)]
    return config, directory / "stopped", whole, timeless(directory / "whole")


@pytest.fixture
def stopped(runs, tmp_path):
    """Copies the stopped run, so that a test can damage it."""
    shutil.copytree(runs[1], tmp_path / "run")
    return tmp_path / "run"


def files(workdir, step):
    """Lists the files of a saved step."""
    return [path for path in (workdir / "checkpoints" / str(step)).rglob("*") if path.is_file()]


def test_every_damage_to_every_file_is_seen(stopped):
    assert {"_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "metadata", "metrics", checksums.LIST_FILE} <= {
        path.name for path in files(stopped, 5)
    }
    for path in files(stopped, 5):
        kept = path.read_bytes()
        for damage in DAMAGES:
            damage(path)
            verdict = checkpoints.verify(stopped)
            assert verdict[3] is None, (path, damage)
            name = str(path.relative_to(stopped / "checkpoints" / "5"))
            assert verdict[5] and (name in verdict[5] or path.name == checksums.LIST_FILE), (path, damage, verdict[5])
            path.write_bytes(kept)
    assert checkpoints.verify(stopped) == {3: None, 5: None}
    (stopped / "checkpoints" / "5" / "state" / "more").touch()
    assert checkpoints.verify(stopped)[5] == f"state/more is not in {checksums.LIST_FILE}"


def test_a_checkpoint_of_before_these_two_files_had_sums_is_whole(runs, stopped):
    """Orbax wrote two files after the list."""
    directory = stopped / "checkpoints" / "5"
    lines = (directory / checksums.LIST_FILE).read_text().splitlines(keepends=True)
    (directory / checksums.LIST_FILE).write_text("".join(x for x in lines if "  _CHECKPOINT_METADATA" not in x))
    (directory / "commit_success.txt").write_text("Checkpoint commit was successful")
    assert checkpoints.verify(stopped) == {3: None, 5: None}
    assert train_and_evaluate(runs[0], stopped)["resumed_at"] == [5]


def largest(workdir, step):
    """Returns the file with the arrays."""
    return max((path for path in files(workdir, step) if path.parent.name == "d"), key=lambda path: path.stat().st_size)


ARRAYS_CHANGED = r"state/(ocdbt\S+/)?d/\S+ has changed"  # two files are about as large: either may be the largest
FALLBACKS = {
    "a bit of the weights": (lambda run: flipped(largest(run, 5)), ARRAYS_CHANGED),
    "half of the weights": (lambda run: truncated(largest(run, 5)), ARRAYS_CHANGED),
    "Orbax's metrics": (
        lambda run: emptied(run / "checkpoints/5/metrics/metrics"),
        "metrics/metrics has changed",
    ),
    "the meta": (lambda run: missing(run / "checkpoints/5/meta/metadata"), "meta/metadata is missing"),
    "everything": (
        lambda run: (shutil.rmtree(run / "checkpoints/5"), (run / "checkpoints/5").mkdir()),
        "checksums.sha256 is missing",
    ),
}


@pytest.mark.parametrize("name", cases("a bit of the weights", full=[*FALLBACKS][1:]))
def test_the_checkpoint_before_takes_over(runs, stopped, capsys, name):
    config, _, whole, metrics = runs
    damage, what = FALLBACKS[name]
    damage(stopped)
    foretold = examine(stopped)
    assert not foretold.verified and foretold.outlook == "moves step 5 to damaged/ and goes on at step 3 of 6"
    with pytest.raises(RunError, match=r"checkpoint \S*5 is damaged|hold damaged ones \(5: metrics/"):
        evaluate_run(stopped, "validation", "latest")
    summary = train_and_evaluate(config, stopped)
    assert re.search(rf"checkpoint 5 of \S+ is damaged \({what}\) and is now \S+/damaged/5-", capsys.readouterr().out)
    assert summary["resumed_at"] == [3] and summary["params_sha256"] == whole["params_sha256"]
    assert timeless(stopped) == metrics
    assert len(list((stopped / "damaged").iterdir())) == 1  # moved, not deleted
    assert examine(stopped).verified


@pytest.mark.full
def test_all_damaged_is_a_refusal_that_names_them(runs, stopped):
    flipped(largest(stopped, 3))
    shutil.rmtree(stopped / "checkpoints/5/state")
    assert examine(stopped).outlook == "is refused: every checkpoint is damaged"
    before = sorted(path for path in stopped.rglob("*"))
    with pytest.raises(RunError, match=r"is damaged \(3: state/\S+ has changed; 5: state/\S+ is missing\)"):
        train_and_evaluate(runs[0], stopped)
    assert sorted(path for path in stopped.rglob("*")) == before


def test_a_checkpoint_under_another_name_is_damaged(runs, stopped):
    (stopped / "checkpoints" / "5").rename(stopped / "checkpoints" / "4")
    assert checkpoints.verify(stopped) == {3: None, 4: "it is step 5, under another name"}
    assert train_and_evaluate(runs[0], stopped)["resumed_at"] == [3]
    assert timeless(stopped) == runs[3]


def test_a_checkpoint_of_another_run_is_refused(runs, stopped, tmp_path):
    other = dataclasses.replace(runs[0], seed=1, total_steps=7)
    train_and_evaluate(other, tmp_path / "other")
    shutil.copytree(tmp_path / "other" / "checkpoints" / "7", stopped / "checkpoints" / "7")
    with pytest.raises(RunError, match="was trained with another config"):
        train_and_evaluate(runs[0], stopped)


def test_names_that_are_no_steps_are_left_alone(runs, stopped):
    junk = [stopped / "checkpoints" / name for name in ("007", "５０", "5.bak", "notes")]
    for directory in junk:
        directory.mkdir()
    assert examine(stopped).verified and examine(stopped).outlook == "goes on at step 5 of 6"
    assert train_and_evaluate(runs[0], stopped)["params_sha256"] == runs[2]["params_sha256"]
    assert all(directory.exists() for directory in junk)


@pytest.mark.full
def test_what_is_lost_is_said(runs, stopped, capsys):
    (stopped / METRICS_FILE).unlink()
    summary = train_and_evaluate(runs[0], stopped)
    assert "its metrics end at step 0; those up to step 5 are lost" in capsys.readouterr().out
    (stopped / "student.npz").unlink()
    assert examine(stopped).outlook == "goes on at step 6 of 6"
    again = train_and_evaluate(runs[0], stopped)  # the run is no longer finished: it makes its weights again
    assert again["params_sha256"] == summary["params_sha256"] and (stopped / "student.npz").exists()
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "summary.json").unlink()
    assert train_and_evaluate(runs[0], stopped)["params_sha256"] == summary["params_sha256"]
    assert "was begun before, but no checkpoint is there: begins at step 0" in capsys.readouterr().out


def test_an_unfinished_save_is_no_checkpoint(runs, stopped):
    """A process died during this save: its files are not used, and at the end they are removed."""
    half = stopped / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(stopped / "checkpoints" / "5", half)
    truncated(half / largest(stopped, 5).relative_to(stopped / "checkpoints" / "5"))
    assert examine(stopped).outlook == "goes on at step 5 of 6"
    assert train_and_evaluate(runs[0], stopped)["params_sha256"] == runs[2]["params_sha256"]
    assert not half.exists()


@pytest.mark.parametrize("name", ["config.json", "architecture.json", METRICS_FILE])
def test_another_damaged_file_is_a_refusal_that_names_it(runs, stopped, name):
    (stopped / name).write_bytes(b"\x00" + (stopped / name).read_bytes()[1:])
    foretold = examine(stopped)
    assert not foretold.verified and foretold.outlook.startswith(f"is refused: {stopped / name}")
    with pytest.raises(RunError, match=name):
        train_and_evaluate(runs[0], stopped)


def test_the_doctor_knows_a_finished_run(runs, stopped):
    train_and_evaluate(runs[0], stopped)
    found = examine(stopped)
    assert (found.verified, found.status, found.outlook) == (
        True, "finished", "reads the summary: the run is finished"
    )  # fmt: skip
    summary = json.loads((stopped / "summary.json").read_text())
    (stopped / "summary.json").write_text(json.dumps({**summary, "params_sha256": "0"}))
    (weights,) = (finding for finding in examine(stopped).findings if not finding.verified)
    assert weights.name == "student.npz" and "does not hold the weights" in weights.detail
    with pytest.raises(RunError, match="is not a run directory: it has none of"):
        examine(stopped / "checkpoints")

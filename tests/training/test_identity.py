"""Checks that a run is known by what its data and networks are, and not by where they lie."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from processes import timeless

from big_distill.config import differences, fingerprint
from big_distill.errors import Preempted, RunError
from big_distill.files import checksums
from big_distill.resolve import resolve
from big_distill.run_dir import layout
from big_distill.training import identity
from big_distill.training.loop import train_and_evaluate


def write_images(root, seed=0):
    """Writes 10 grey bitmaps of each of two classes; all have one size, whatever the seed."""
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.random.default_rng([seed, index, len(name)]).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.bmp")
    return root


@pytest.fixture
def photos(tiny, tmp_path):
    """Puts `tiny` on a folder of photos, with four steps of four."""
    tiny.source.update(name="folder", path=str(write_images(tmp_path / "photos")), num_train_examples=20)
    tiny.source.update(validation=None, test="train")
    tiny.update(num_classes=2, batch_size=4, total_steps=4, eval_every_steps=4, checkpoint_every_steps=2)
    return tiny


def at(config, path, **fields):
    """Returns the resolved config with its data at another path."""
    config = config.copy_and_resolve_references()
    config.source.path = str(path)
    config.update(fields)
    return resolve(config, 1, "cpu")


def with_first_stage(config, path):
    """Returns a resolved config whose first stage alone has its data at this path."""
    config, first = config.copy_and_resolve_references(), config.copy_and_resolve_references()
    first.source.path = str(path)
    config.init_config = first
    return resolve(config, 1, "cpu")


def begin(config, workdir, interrupt_after):
    """Trains two steps of a run."""
    interrupt_after(2)
    with pytest.raises(Preempted):
        train_and_evaluate(config, workdir)


def forget(workdir, *names):
    """Removes identities, or their samples, from a run's checkpoints, as those of earlier versions have none."""
    for step in (workdir / "checkpoints").iterdir():
        meta = json.loads((step / "meta" / "metadata").read_text())
        kept = {part: value for part, value in meta["identity"].items() if part not in names}
        if "sample" in names:
            del kept["data"]["sample"]
        (step / "meta" / "metadata").write_text(json.dumps(meta | {"identity": kept}))
        (step / checksums.LIST_FILE).unlink()
        checksums.write(step)


def test_a_fingerprint_has_places_as_they_are_typed(photos):
    """The fingerprint is that of the version before places were a kind of their own."""
    photos.teacher.path, photos.init_from = "runs/t", "runs/i"
    photos.objective.name = photos.view.regime = "function_matching"
    before, after = at(photos, "/a"), at(photos, "/b", init_from="runs/j")
    assert fingerprint(before) == "8ce0ecd4434c" != fingerprint(after)
    assert differences(before, after, "maths") == []
    assert differences(before, after, "place") == [
        "config.init_from: 'runs/i' -> 'runs/j'",
        "config.source.path: '/a' -> '/b'",
    ]


@pytest.mark.full
def test_a_run_goes_on_where_its_data_and_its_teacher_lie_now(photos, tmp_path, interrupt_after, capsys):
    teacher = at(photos, tmp_path / "photos", seed=1)
    train_and_evaluate(teacher, tmp_path / "teacher")
    photos.objective.name = photos.view.regime = "function_matching"
    photos.teacher.path = str(tmp_path / "teacher")
    config = at(photos, tmp_path / "photos")
    whole = train_and_evaluate(config, tmp_path / "whole")
    run = tmp_path / "runs" / f"mine-{fingerprint(config)}"
    begin(config, run, interrupt_after)
    for name in ("photos", "teacher"):
        shutil.move(tmp_path / name, tmp_path / "mount" / name)
    photos.teacher.path = str(tmp_path / "mount" / "teacher")
    moved = at(photos, tmp_path / "mount" / "photos")
    default = run.with_name(f"mine-{fingerprint(moved)}")
    assert identity.find(moved, default) == run != default
    capsys.readouterr()
    summary = train_and_evaluate(moved, run)
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "elsewhere" in line]
    assert line.startswith(f"{run}: its data or networks lie elsewhere now (config.teacher.path: ")
    assert f"config.source.path: '{tmp_path}/photos' -> '{tmp_path}/mount/photos'" in line
    assert summary["resumed_at"] == [2] and summary["params_sha256"] == whole["params_sha256"]
    assert timeless(run) == timeless(tmp_path / "whole")
    assert summary["config_fingerprint"] == layout.read_fingerprint(run) == fingerprint(config)
    assert layout.read_config(run) == moved

    # The finished run is found, too, and only read.
    assert identity.find(moved, default) == run and train_and_evaluate(moved, run) == summary
    shutil.move(tmp_path / "mount", tmp_path / "disk")
    photos.teacher.path = str(tmp_path / "disk" / "teacher")
    again = at(photos, tmp_path / "disk" / "photos")
    assert identity.find(again, default) == run and train_and_evaluate(again, run) == summary
    assert layout.read_config(run) == moved

    # Another learning rate or other pixels, of the same names and sizes, are another run.
    optimizer = dataclasses.replace(again.optimizer, lr=0.5)
    assert identity.find(dataclasses.replace(again, optimizer=optimizer), default) == default
    other = at(photos, write_images(tmp_path / "other", seed=1))
    assert identity.find(other, default) == default
    with pytest.raises(RunError, match=r"was trained with another data \(.*/photos train, 20 .*; now .*/other train"):
        train_and_evaluate(other, run)


@pytest.mark.full
def test_a_run_in_its_default_directory_is_the_one(photos, tmp_path, interrupt_after):
    begin(at(photos, tmp_path / "photos"), tmp_path / "runs" / "mine-0", interrupt_after)
    shutil.copytree(tmp_path / "runs" / "mine-0", tmp_path / "runs" / "mine-1")
    shutil.copytree(tmp_path / "runs" / "mine-0", tmp_path / "runs" / "yours-0")
    (tmp_path / "runs" / "mine-2").mkdir()
    config = at(photos, tmp_path / "photos")
    for name, found in (("mine-1", "mine-1"), ("mine-2", "mine-0"), ("its-3", "its-3")):
        assert identity.find(config, tmp_path / "runs" / name) == tmp_path / "runs" / found


def test_a_run_of_an_earlier_version_goes_on_elsewhere(photos, tmp_path, interrupt_after):
    photos.eval_source = photos.source.copy_and_resolve_references()
    begin(at(photos, tmp_path / "photos"), tmp_path / "run", interrupt_after)
    forget(tmp_path / "run", "sample", "evaluation", "initial")
    shutil.copytree(tmp_path / "photos", tmp_path / "mount")
    elsewhere = at(photos, tmp_path / "mount")
    start = at(photos, tmp_path / "mount", init_from=str(tmp_path / "gone"))
    on_other = dataclasses.replace(elsewhere, eval_source=elsewhere.source)
    for config, field in ((on_other, "eval_source.path"), (start, "init_from")):
        with pytest.raises(RunError, match=rf"another config \(config.{field}: .*\), and does not say what lay there"):
            train_and_evaluate(config, tmp_path / "run")
    assert train_and_evaluate(elsewhere, tmp_path / "run")["resumed_at"] == [2]


def test_another_evaluation_set_is_refused(photos, tmp_path, interrupt_after):
    photos.eval_source = photos.source.copy_and_resolve_references()
    config = at(photos, tmp_path / "photos")
    begin(config, tmp_path / "run", interrupt_after)
    other = write_images(tmp_path / "other", seed=1)
    source = dataclasses.replace(config.eval_source, path=str(other))
    with pytest.raises(RunError, match=r"was trained with another evaluation set \(.*/photos train.*; now .*/other"):
        train_and_evaluate(dataclasses.replace(config, eval_source=source), tmp_path / "run")


@pytest.mark.full
def test_the_network_that_a_run_began_from_may_move_or_go(photos, tmp_path, interrupt_after):
    path = tmp_path / "photos"
    for seed in (1, 2):
        train_and_evaluate(at(photos, path, seed=seed, total_steps=2, eval_every_steps=2), tmp_path / f"first{seed}")
    begin(at(photos, path, init_from=str(tmp_path / "first1")), tmp_path / "run", interrupt_after)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for field, now in ((str(tmp_path / "first2"), r"\S+first2"), (None, "none")):
        with pytest.raises(RunError, match=rf"another initial network \(\S+first1, hash \w+; now {now}"):
            train_and_evaluate(at(photos, path, init_from=field), tmp_path / "run")
    shutil.move(tmp_path / "first1", tmp_path / "mount")
    moved = at(photos, path, init_from=str(tmp_path / "mount"))
    assert train_and_evaluate(moved, tmp_path / "run")["resumed_at"] == [2]
    gone = at(photos, path, init_from=str(tmp_path / "first1"))
    assert train_and_evaluate(gone, tmp_path / "copy")["resumed_at"] == [2]


@pytest.mark.full
def test_the_first_stage_of_a_run_is_known_by_its_data(photos, tmp_path, interrupt_after):
    """Its directory is not read any more when the run has begun, unless its data lie elsewhere."""
    staged = functools.partial(with_first_stage, photos)
    config = staged(tmp_path / "photos")
    train_and_evaluate(config.init_config, tmp_path / "run" / "init")
    begin(config, tmp_path / "run", interrupt_after)
    shutil.copytree(tmp_path / "photos", tmp_path / "mount")
    with pytest.raises(RunError, match=r"run/init was trained with another data"):
        train_and_evaluate(staged(write_images(tmp_path / "other", seed=1)), tmp_path / "run")
    assert train_and_evaluate(staged(tmp_path / "mount"), tmp_path / "run")["resumed_at"] == [2]

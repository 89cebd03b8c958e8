import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from big_distill import errors
from big_distill.data import duplicates
from big_distill.resolve import resolve
from big_distill.training.data import open_data, without_duplicates
from big_distill.training.loop import train_and_evaluate


@pytest.fixture
def leaking(tiny, tmp_path):
    """Writes 12 training and 4 test photos. Two of the latter are also in training, as ant/0.png and bee/1.png."""
    random = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for split, count in (("train", 6), ("test", 2)):
        for label in ("ant", "bee"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
                coarse.resize((40, 40), Image.Resampling.BICUBIC).save(folder / split / label / f"{number}.png")
    shutil.copy(folder / "train/ant/0.png", folder / "test/ant/1.png")
    Image.open(folder / "train/bee/1.png").save(folder / "test/bee/0.jpg", quality=60)
    (folder / "test/bee/0.png").unlink()
    tiny.source.update(name="folder", path=str(folder), validation=None, test="test", num_train_examples=12)
    tiny.update(num_classes=2, batch_size=8)
    tiny.view.channels = 3
    return tiny


def opened(config, workdir, **fields):
    config = resolve(config, jax.device_count(), "cpu")
    source = dataclasses.replace(config.source, **fields)
    workdir.mkdir(exist_ok=True, parents=True)
    config = dataclasses.replace(config, source=source)
    return without_duplicates(config, workdir, open_data(config)).source


def names(source):
    return {"/".join(pathlib.Path(source.example_name(i)).parts[-2:]) for i in range(source.num_examples)}


def test_duplicates_are_counted_and_named_and_the_run_is_as_before(leaking, tmp_path, capsys):
    run = tmp_path / "run"
    source = opened(leaking, run)
    table = run / "duplicates.csv"
    assert (
        f"duplicates: train and test share 2 (1 near copies) ({table}); a new run with --config"
        in capsys.readouterr().out
    )
    _, *rows = table.read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["examined", "examined", "exact", "near"]
    assert "train/ant/0.png,ant,test" in rows[2] and "test/bee/0.jpg,bee" in rows[3]
    assert source.num_examples == 12 and source.fingerprint == opened(leaking, run).fingerprint


def test_dropped_duplicates_are_in_no_batch_and_are_not_looked_for_again(leaking, tmp_path, monkeypatch, capsys):
    every = opened(leaking, tmp_path / "all")
    run = tmp_path / "run"
    left = opened(leaking, run, drop_duplicates=True)
    assert names(every) - names(left) == {"ant/0.png", "bee/1.png"} and left.num_examples == len(names(left)) == 10
    assert "trains on 10 of 12 images" in capsys.readouterr().out
    assert left.fingerprint != every.fingerprint
    assert left.labels.tolist() == [label for _, label in left.read(np.arange(10))]

    monkeypatch.setattr(duplicates, "find", None)
    for directory in (run, run / "teacher"):  # a resume, and a teacher that this run trains
        assert opened(leaking, directory, drop_duplicates=True).fingerprint == left.fingerprint


def test_nobody_looks_for_duplicates_where_a_run_goes_on_or_does_not_want_it(leaking, tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "find", None)
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    assert opened(leaking, tmp_path / "run").num_examples == 12
    assert opened(leaking, tmp_path / "new", duplicates_seconds=0.0).num_examples == 12


def test_a_search_that_would_take_too_long_is_said(leaking, tmp_path, capsys):
    opened(leaking, tmp_path / "run", duplicates_seconds=1e-9)
    assert "did not look for duplicates: that takes more than config.source.duplicates_s" in capsys.readouterr().out
    assert not (tmp_path / "run" / "duplicates.csv").exists()


def test_too_few_images_are_left(leaking, tmp_path):
    with pytest.raises(errors.DataError, match=r"^config.source.drop_duplicates=True leaves no training image of "):
        opened(leaking, tmp_path / "run", test="train", drop_duplicates=True)
    for file in pathlib.Path(leaking.source.path, "train/bee").iterdir():
        shutil.copy(file, pathlib.Path(leaking.source.path, "test/bee"))
    with pytest.raises(errors.DataError, match=r"no image of 1 of its classes: bee"):
        opened(leaking, tmp_path / "another", drop_duplicates=True)


@pytest.mark.full
def test_a_run_without_duplicates_resumes_to_the_bit(leaking, tmp_path, interrupt_after, monkeypatch):
    leaking.source.drop_duplicates = True
    leaking.source.balance = "sqrt"
    config = resolve(leaking, jax.device_count(), "cpu")
    whole = train_and_evaluate(config, tmp_path / "whole")
    interrupt_after(2)
    with pytest.raises(errors.Preempted):
        train_and_evaluate(config, tmp_path / "run")
    resumed = train_and_evaluate(config, tmp_path / "run")
    assert resumed["resumed_at"] and resumed["params_sha256"] == whole["params_sha256"]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    for name in ("summary.json", "student.npz"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "duplicates.csv").unlink()
    monkeypatch.setattr(duplicates, "find", lambda *args: [])  # as if another version found none
    with pytest.raises(errors.RunError, match="was trained with another list of duplicates"):
        train_and_evaluate(config, tmp_path / "run")

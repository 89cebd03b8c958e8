"""Trains on scans of 12 bits in files of 16: training, evaluation and predict must see the same pixels."""

import numpy as np
import pytest
from PIL import Image

import big_distill
from big_distill.data.folders import open_folder
from big_distill.resolve import resolve
from big_distill.training.evaluation import evaluate_run
from big_distill.training.loop import train_and_evaluate


@pytest.mark.full
def test_a_student_keeps_the_bits_of_its_scans(tiny, tmp_path):
    rng = np.random.default_rng(0)
    scans = tmp_path / "scans"
    for index in range(60):
        label = index % 2
        values = rng.integers(0, 1500, (8, 8)) + label * 2500  # black to white in 12 bits, almost black in 16
        path = scans / "ab"[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint16)).save(path)
    tiny.source.update(name="folder", path=str(scans), validation=None)
    tiny.num_classes, tiny.batch_size, tiny.total_steps, tiny.eval_every_steps = 2, 8, 24, 24
    tiny.source.num_train_examples = open_folder(resolve(tiny, 1, "cpu").source, "train").num_examples
    scores = train_and_evaluate(resolve(tiny, 1, "cpu"), tmp_path / "run")["scores"]["test"]
    assert scores["accuracy"] == 1.0

    network = big_distill.load(tmp_path / "run")
    assert network.architecture.bit_depth == 12
    files = sorted(scans.glob("*/*.png"))
    right = [network.predict([file.read_bytes()]).argmax() == "ab".index(file.parent.name) for file in files]
    assert np.mean(right) == pytest.approx(evaluate_run(tmp_path / "run", "all")["accuracy"])

    dark = tmp_path / "dark" / "a"  # by itself it would be read as 8 bits
    dark.mkdir(parents=True)
    (dark.parent / "b").mkdir()
    Image.fromarray(np.full((8, 8), 250, np.uint16)).save(dark / "1.png")
    other = evaluate_run(tmp_path / "run", "all", source={"path": str(dark.parent)})
    grey = np.full((8, 8), round(250 * 255 / 4095), np.uint8)
    assert other["nll"] == pytest.approx(-np.log(network.predict([grey])[0, 0]), rel=1e-4)

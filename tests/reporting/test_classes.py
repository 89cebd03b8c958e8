"""Checks what is counted class by class, and the files that `evaluate --out` writes."""

import csv
import xml.etree.ElementTree

import numpy as np
import pytest

from big_distill import evaluate
from big_distill.errors import ConfigError, RunError
from big_distill.reporting import class_files, classes

LABEL = np.array([0, 0, 0, 0, 1, 1, 3, -1, 3], np.int32)
ANSWER = np.array([0, 1, 1, 3, 1, 0, 0, 1, 3])
NAMES = ("cat", "a, dog", "=1+1", "_emu")


def totals():
    matrix = classes.confusion(LABEL, ANSWER, 4)
    return {"labelled": np.float64(8), "classes": classes.count(LABEL, ANSWER, 4) * 1.0, "confusion": matrix * 1.0}


def test_labels_and_answers_are_counted():
    assert classes.confusion(LABEL, ANSWER, 4).tolist() == [[1, 2, 0, 1], [1, 1, 0, 0], [0] * 4, [1, 0, 0, 1]]
    assert classes.count(LABEL, ANSWER, 4).tolist() == [[1, 1, 0, 1], [4, 2, 0, 2], [3, 3, 0, 2]]
    assert classes.confused(LABEL, ANSWER, 3) == [(0, 1, 2), (0, 3, 1), (1, 0, 1)]
    assert classes.confused(LABEL[:1], ANSWER[:1], 3) == []


def test_files_of_an_evaluation(tmp_path):
    """Names with commas stay one cell. A rate that is not defined is empty."""
    files = class_files.write(tmp_path / "new", totals(), NAMES, "run, test")
    assert [path.name for path in files] == ["classes.csv", "confusion.csv", "confusion.svg"]
    head, *rows = csv.reader(files[0].open())
    assert head == ["class", "examples", "answers", "right", "precision", "recall", "f1"]
    assert rows[0][:4] == ["cat", "4", "3", "1"] and [float(x) for x in rows[0][4:]] == pytest.approx(
        [1 / 3, 1 / 4, 2 / 7]
    )
    assert rows[2] == ["=1+1", "0", "0", "0", "", "", ""]
    head, *rows = csv.reader(files[1].open())
    assert head[1:] == list(NAMES) and [row[0] for row in rows] == list(NAMES) and rows[0][1:] == ["1", "2", "0", "1"]
    text = " ".join(xml.etree.ElementTree.fromstring(files[2].read_text()).itertext())
    assert "a, dog" in text and "_emu" in text and "=1+1" not in text, "it has no examples and no answers"
    class_files.check_ours(tmp_path / "new")  # they may be replaced


@pytest.mark.parametrize("name", ["classes.csv", "confusion.csv", "confusion.svg"])
def test_no_other_file_is_lost(tmp_path, name):
    (tmp_path / name).write_text("class list of my thesis\n")
    with pytest.raises(ConfigError, match=f"--out={tmp_path}: .*{name} is not of an evaluation and would be lost"):
        class_files.check_ours(tmp_path)


def test_without_labels_there_are_no_classes(tmp_path):
    with pytest.raises(RunError, match="run, test has no labels"):
        class_files.write(tmp_path, {"labelled": np.float64(0)}, NAMES, "run, test")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        class_files.write(tmp_path / "file", totals(), NAMES, "run, test")


def test_the_table_says_how_sure_an_accuracy_is():
    scores = {
        "data": "digits test",
        "num_examples": 397,
        "accuracy": 0.9295,
        "accuracy_low": 0.9,
        "accuracy_high": 0.95,
        "macro_f1": 0.5,
    }
    assert evaluate.table(scores).splitlines() == [
        "data              digits test",
        "num_examples            397",
        "accuracy              92.95 %  (95 % interval: 90.00 to 95.00 %)",
        "macro_f1              50.00 %",
    ]

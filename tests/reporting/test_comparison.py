"""Checks the comparison of a student with its teacher against what both networks say, one image at a time."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import big_distill
from big_distill.data.sources import open_source
from big_distill.errors import DataError
from big_distill.reporting import comparison
from big_distill.reporting.comparison import choose, class_scores, compare
from big_distill.run_dir.layout import read_config
from big_distill.training import evaluation
from big_distill.training.evaluation import evaluate_run

pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def found(finished):
    return compare(finished, read_config(finished), None, None, 5, "run")


@pytest.fixture(scope="module")
def asked(finished):
    """Returns images and labels of the test split, and both networks' probabilities by `big_distill.load`."""
    source = open_source(read_config(finished).source, "test", num_classes=10, image_size=8, channels=1)
    images, labels = zip(*source.read(np.arange(source.num_examples)), strict=True)
    student, teacher = (big_distill.load(path).predict(list(images)) for path in (finished, finished / "teacher"))
    return images, np.array(labels), student, teacher


def test_every_class_is_counted(found, asked):
    _, labels, student, teacher = asked
    assert (found.split, found.num_examples, len(found.by_class)) == ("test", len(labels), 10)
    for label, score in enumerate(found.by_class):
        own = labels == label
        right, teachers = (probabilities[own].argmax(-1) == label for probabilities in (student, teacher))
        assert (score.name, score.num_examples) == (str(label), own.sum())
        assert (score.student, score.teacher) == (right.sum(), teachers.sum())
        assert (score.lost, score.won) == (sum(~right & teachers), sum(right & ~teachers))
        assert score.difference == pytest.approx(right.mean() - teachers.mean())
    assert sum(score.lost for score in found.by_class) > 0, "or there is nothing to test"


def test_calibration_is_that_of_evaluation(found, finished, asked):
    _, labels, student, _ = asked
    for workdir, answers in ((finished, found.student), (finished / "teacher", found.teacher)):
        assert answers.ece == pytest.approx(evaluate_run(workdir, "test")["ece"], abs=1e-6)
    confidence, correct, count = found.student.bins
    assert count.sum() == len(labels) and correct.sum() == (student.argmax(-1) == labels).sum()
    assert confidence.sum() == pytest.approx(student.max(-1).sum(), rel=1e-4)


@pytest.mark.parametrize("every", [2, 1])
def test_an_example_without_a_label_is_in_no_class(finished, asked, monkeypatch, every):
    """Every second label is -1, or all are."""
    whole = evaluation.open_split

    def opened(config, source, split, bit_depth):
        source = whole(config, source, split, bit_depth)

        def read(ids):
            return [
                (image, label if i % every else -1) for i, (image, label) in zip(ids, source.read(ids), strict=True)
            ]

        return dataclasses.replace(source, read=read)

    monkeypatch.setattr(evaluation, "open_split", opened)
    found = compare(finished, read_config(finished), None, None, 5, "run")
    _, labels, student, _ = asked
    if every == 1:
        assert found.student.accuracy is found.student.ece is None and found.by_class == () and found.examples["differ"]
        assert any("its data have no labels" in problem for problem in found.problems)
    else:
        assert sum(score.num_examples for score in found.by_class) == len(labels) // 2
        assert found.student.accuracy == pytest.approx((student.argmax(-1) == labels)[1::2].mean())


def test_examples_are_what_only_one_has_right(found, asked):
    assert 0 < len(found.examples["lost"]) <= 5
    check_examples(found, asked)


def test_every_class_has_its_precision_and_recall(found, asked):
    _, labels, student, teacher = asked
    for answers, probabilities in ((found.student, student), (found.teacher, teacher)):
        answer = probabilities.argmax(-1)
        want = [[((labels == k) & (answer == k)).sum(), (labels == k).sum(), (answer == k).sum()] for k in range(10)]
        assert answers.by_class.T.tolist() == np.array(want).tolist()
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, student.argmax(-1)), 1)
    assert found.confusion.tolist() == matrix.tolist()
    np.fill_diagonal(matrix, 0)
    truth, answer, number = found.confused[0]
    assert number == matrix.max() == matrix[int(truth), int(answer)] > 0
    assert found.student.scores["balanced_accuracy"] == pytest.approx(
        np.mean([(student.argmax(-1) == labels)[labels == k].mean() for k in range(10)])
    )


def test_a_planted_wrong_label_is_contradicted_most(finished, asked, monkeypatch):
    """The image of which the teacher is surest gets another label. Its name and its picture come first."""
    _, labels, _, teacher = asked
    sure = int(np.argmax(np.where(teacher.argmax(-1) == labels, teacher.max(-1), 0)))
    whole = evaluation.open_split

    def opened(*args):
        source = whole(*args)

        def read(ids):
            examples = source.read(ids)
            return [(x, (y + 1) % 10 if i == sure else y) for i, (x, y) in zip(ids, examples, strict=True)]

        return dataclasses.replace(source, read=read)

    monkeypatch.setattr(evaluation, "open_split", opened)
    found = compare(finished, read_config(finished), None, None, 3, "run")
    first, *others = found.examples["contradicted"]
    assert (first.name, first.truth) == (f"digits test #{sure}", str((labels[sure] + 1) % 10))
    assert first.teacher[0][0] == str(labels[sure])
    assert found.num_contradicted == (teacher.argmax(-1) != labels).sum() + 1
    surety = [example.teacher[0][1] for example in (first, *others)]
    assert len(others) == 2 and surety == sorted(surety, reverse=True)


def test_images_that_cannot_be_read_do_not_count(finished, asked, monkeypatch):
    """Such images do not count, and no example gets another's picture."""

    class Holed:
        def __init__(self, *args):
            self.whole = open_eval(*args)
            self.source, self.num_batches = self.whole.source, self.whole.num_batches

        def __iter__(self):
            return ({**b, "mask": b["mask"] & (np.arange(len(b["mask"])) % 3 > 0)} for b in self.whole)

    open_eval = comparison.open_eval
    monkeypatch.setattr(comparison, "open_eval", Holed)
    found = compare(finished, read_config(finished), "test", None, 20, "run")
    assert found.num_examples == found.student.bins[2].sum() == sum(score.num_examples for score in found.by_class)
    assert 200 < found.num_examples < 300 and len(found.examples["lost"]) > 5
    check_examples(found, asked)


def check_examples(found, asked):
    """Checks that each example has its picture, and what both networks say about it."""
    images, labels, student, teacher = asked
    pixels = {np.asarray(image).tobytes(): row for row, image in enumerate(images)}
    for kind, examples in found.examples.items():
        for example in examples:
            row = pixels[np.asarray(Image.open(io.BytesIO(example.png))).tobytes()]
            assert example.truth == str(labels[row])
            for top, probabilities in ((example.student, student[row]), (example.teacher, teacher[row])):
                assert [int(name) for name, _ in top] == np.argsort(-probabilities, kind="stable")[:3].tolist()
                assert [value for _, value in top] == pytest.approx(np.sort(probabilities)[::-1][:3], abs=1e-4)
            right = [top[0][0] == example.truth for top in (example.student, example.teacher)]
            if kind == "contradicted":
                assert example.name == f"digits test #{row}" and not right[1]
            else:
                assert right == [kind == "won", kind == "lost"]


def test_the_worst_classes_take_turns():
    label = np.array([7, 7, 7, 3, 3, 5, 5, 7])
    where = np.array([True, True, True, True, True, True, False, False])
    confidence = np.array([0.1, 0.9, 0.5, 0.6, 0.7, 0.2, 0.99, 0.99])
    assert choose(where, label, confidence, 5) == [1, 4, 5, 2, 3]
    assert choose(where, label, confidence, 99) == [1, 4, 5, 2, 3, 0]
    assert choose(~where & where, label, confidence, 5) == []


def scores(*counts):
    """Scores classes in which only the teacher has `lost` images right, and only the student `won` images."""
    label = np.repeat(np.arange(len(counts)), [lost + won + 1 for lost, won in counts])
    student = np.concatenate([[False] * lost + [True] * won + [True] for lost, won in counts])
    teacher = np.concatenate([[True] * lost + [False] * won + [True] for lost, won in counts])
    return class_scores([str(i) for i in range(len(counts) + 1)], label, student, teacher)


def test_what_chance_does_is_not_significant():
    """The sign test is exact; among many classes, some of which differ by chance, it asks for more."""
    (score,) = scores((5, 0))
    assert score.p_value == 2 / 2**5 and not score.significant, "twice the chance of five heads"
    assert (score.num_examples, score.lost, score.won, score.difference) == (6, 5, 0, -5 / 6)
    assert scores((0, 0))[0].p_value == 1 and scores((13, 26))[0].p_value == pytest.approx(0.05325, abs=1e-5)
    assert scores((0, 6))[0].significant
    assert not any(score.significant for score in scores((0, 6), *[(2, 2)] * 20))
    assert [score.significant for score in scores((0, 40), *[(2, 2)] * 20)] == [True] + [False] * 20


def test_without_data_or_teacher(run):
    config = read_config(run)
    with pytest.raises(DataError, match=r"digits: .*its splits are train, validation, test"):
        compare(run, config, "fifth", None, 5, "run")
    (run / "teacher" / "student.npz").unlink()
    found = compare(run, config, "validation", None, 5, "run")
    assert found.teacher is None and found.by_class == () and found.num_examples == 200 and found.student.ece > 0
    (line,) = found.problems
    assert line.startswith("its teacher cannot be asked: ") and "is not a finished run" in line

"""Counts, class by class, what a network answers: precision and recall, the confusion matrix and its largest cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_distill.step import scoring

HEADS = ("class", "examples", "answers", "right", "precision", "recall", "f1")


def count(label: np.ndarray, answer: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `classes`, int [3, K], from labels (-1: none) and answers [N], as `scoring.score` does."""
    known = label >= 0
    counted = (label[known & (label == answer)], label[known], answer[known])
    return np.stack([np.bincount(of, minlength=num_classes) for of in counted])


def confusion(label: np.ndarray, answer: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts `confusion`, int [K, K] by label and answer, from labels (-1: none) and answers [N]."""
    known = label >= 0
    cells = label[known].astype(int) * num_classes + answer[known]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def confused(label: np.ndarray, answer: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """Lists at most `most` pairs of a label and another answer, with their numbers of examples, most examples first."""
    wrong = (label >= 0) & (label != answer)
    pairs, counts = np.unique(np.stack([label[wrong], answer[wrong]]), axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(pairs[0, i]), int(pairs[1, i]), int(counts[i])) for i in order]


def rows(names: Sequence[str], classes: np.ndarray) -> list[dict[str, Any]]:
    """Describes each class by `HEADS`, from the `classes` of `scoring.score`. A rate is None where it is not defined.

    `examples` have its label, `answers` are the examples that the network takes for it, and `right` are both.
    """
    scores = scoring.per_class(classes)
    right, examples, answers = classes.astype(int).tolist()
    rates = ([None if math.isnan(value) else value for value in scores[of].tolist()] for of in HEADS[-3:])
    return [dict(zip(HEADS, row, strict=True)) for row in zip(names, examples, answers, right, *rates, strict=True)]

"""Checks the scores of classes and the interval of an accuracy against their formulas, one example at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as reference

from big_distill.parallel import sharding
from big_distill.step import scoring

K = 6
RNG = np.random.default_rng(0)
LABEL = RNG.choice(K, 64, p=(0.6, 0.2, 0.1, 0.05, 0.05, 0))  # no example of class 5
MISTAKEN = (LABEL + np.where(RNG.random(64) < 0.4, RNG.integers(1, K, 64), 0)) % K
LOGITS = RNG.normal(size=(64, K)).astype(np.float32) + 3 * np.eye(K, dtype=np.float32)[MISTAKEN]
LOGITS[:, 2] = -9  # never answered
LABEL[7::9] = -1
ANSWER = LOGITS.argmax(-1)
MASK = np.arange(64) < 60
COUNTED = MASK & (LABEL >= 0)


def totals(out=None, put=jnp.asarray):
    score = jax.jit(functools.partial(scoring.score, confusion=True), out_shardings=out)
    parts = [slice(start, start + 16) for start in range(0, 64, 16)]
    return scoring.add_up(score(*(put(x[rows]) for x in (LOGITS, -LOGITS, LABEL, MASK))) for rows in parts)


def test_classes_are_counted_by_label_and_by_answer():
    found = totals()
    matrix = np.zeros((K, K))
    for label, answer in zip(LABEL[COUNTED], ANSWER[COUNTED], strict=True):
        matrix[label, answer] += 1
    assert found["confusion"].tolist() == matrix.tolist() and matrix.sum() < 60
    assert found["classes"].tolist() == [np.diag(matrix).tolist(), matrix.sum(1).tolist(), matrix.sum(0).tolist()]
    assert matrix[:, 5].sum() > 0 and matrix[:, 2].sum() == 0 < matrix[2].sum(), "or the cases below are not met"


def test_means_over_classes_leave_out_those_without_examples():
    label, answer, there = LABEL[COUNTED], ANSWER[COUNTED], range(5)
    got = scoring.metrics_of(totals())
    options = {"labels": there, "average": "macro", "zero_division": 0}
    assert got["macro_f1"] == pytest.approx(reference.f1_score(label, answer, **options))
    assert got["balanced_accuracy"] == pytest.approx(reference.recall_score(label, answer, **options))
    assert got["balanced_accuracy"] != pytest.approx(got["accuracy"], abs=0.02)
    each = scoring.per_class(totals()["classes"])
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        label, answer, labels=there, zero_division=np.nan
    )
    precision[2], f1[2] = np.nan, 0  # never answered
    for name, want in (("precision", precision), ("recall", recall), ("f1", f1)):
        np.testing.assert_allclose(each[name], [*want, np.nan], err_msg=name)


def test_the_interval_is_wilsons():
    for right, number in ((0, 3), (7, 7), (90, 100), (1, 2), (21_000, 21_841)):
        want = binomtest(right, number).proportion_ci(0.95, method="wilson")
        assert scoring.interval(right, number) == pytest.approx((want.low, want.high), abs=1e-6)
    got = scoring.metrics_of(totals())
    right = (ANSWER == LABEL)[COUNTED].sum()
    assert (got["accuracy_low"], got["accuracy_high"]) == scoring.interval(right, COUNTED.sum())


def test_a_matrix_of_many_classes_is_not_counted(monkeypatch):
    monkeypatch.setattr(scoring, "MOST_CONFUSED", K - 1)
    assert "confusion" not in totals() and totals()["classes"].shape == (3, K)


def test_eight_devices_count_as_one(eight_devices):
    mesh = sharding.make_mesh()
    spread = totals(sharding.replicated(mesh), lambda x: sharding.to_devices(mesh, {"x": x})["x"])
    for name, want in totals().items():
        np.testing.assert_allclose(spread[name], want, rtol=1e-6, err_msg=name)
    assert spread["confusion"].sum() == COUNTED.sum()

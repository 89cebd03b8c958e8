"""Computes exact, masked evaluation metrics: the student against labels, and its fidelity to the teacher.

The device adds up one batch (`score`), and the host adds up batches in float64 (`summarize`). Every example counts
once, and padding does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_distill.step.objectives import kl_divergence

NUM_BINS = 15
MOST_CONFUSED = 1000
"""Up to so many classes an evaluation counts the confusion matrix: 4 MB on the device."""
_NO_MEANS = ("count", "labelled", "classes", "confusion", "calibration")
_Z = 1.959964  # 97.5 % of a normal distribution lie below
_OF_LABELS = ("accuracy", "top5", "nll", "teacher_accuracy")  # examples without a label do not count in them

Sums = Mapping[str, jax.Array]
Totals = dict[str, np.ndarray]
"""Holds float64 sums over a split, by the names of `score`."""


def score(
    student_logits: jax.Array,
    teacher_logits: jax.Array | None,
    label: jax.Array | None,
    mask: jax.Array,
    confusion: bool = False,
) -> dict[str, jax.Array]:
    """Adds up the metrics of the examples of one batch.

    With labels there are also `classes`, int32 [3, K]: for each class the numbers of examples that the student gets
    right, that have this label, and that the student takes for this class.

    Args:
      student_logits: float32 [B, K].
      teacher_logits: float32 [B, K], or None without a teacher.
      label: int32 [B], -1 for an example without one; or None from an unlabelled source.
      mask: bool [B], False for a row that does not count.
      confusion: True to add `confusion`, int32 [K, K], the numbers of examples by label and answer, for up to
        `MOST_CONFUSED` classes.
    """
    sums = {"count": jnp.sum(mask)}
    labelled = mask if label is None else mask & (label >= 0)

    def add(name: str, values: jax.Array) -> None:
        sums[name] = jnp.sum(jnp.where(labelled if name in _OF_LABELS else mask, values, 0))

    if label is not None:
        sums["labelled"] = jnp.sum(labelled)
        answer, num_classes = jnp.argmax(student_logits, -1), student_logits.shape[-1]
        add("accuracy", answer == label)
        add("top5", _in_top5(student_logits, label))
        add("nll", optax.softmax_cross_entropy_with_integer_labels(student_logits, label))
        sums["calibration"] = calibration_bins(student_logits, label, mask)
        sums["classes"] = jnp.stack(
            [
                jnp.zeros(num_classes, jnp.int32).at[of].add(counted)  # a label of -1 is never counted
                for of, counted in ((label, labelled & (answer == label)), (label, labelled), (answer, labelled))
            ]
        )
        if confusion and num_classes <= MOST_CONFUSED:
            sums["confusion"] = jnp.zeros((num_classes, num_classes), jnp.int32).at[label, answer].add(labelled)
    if teacher_logits is not None:
        teacher_label = jnp.argmax(teacher_logits, -1)
        add("kl", kl_divergence(teacher_logits, student_logits))
        add("agreement", jnp.argmax(student_logits, -1) == teacher_label)
        add("agreement5", _in_top5(student_logits, teacher_label))
        if label is not None:
            add("teacher_accuracy", teacher_label == label)
    return sums


def add_up(batches: Iterable[Mapping[str, jax.Array | np.ndarray]]) -> Totals:
    """Adds up the sums of batches."""
    totals: Totals = {}

    def add(batch: Mapping[str, jax.Array | np.ndarray]) -> None:
        for name, value in batch.items():
            totals[name] = totals.get(name, np.float64(0)) + np.asarray(value, np.float64)

    before: Mapping[str, jax.Array | np.ndarray] = {}
    for batch in batches:  # adds one batch late: the device has the next one while the host waits for this
        add(before)
        before = batch
    add(before)
    return totals


def summarize(batches: Iterable[Sums]) -> dict[str, float]:
    """Computes the metrics of a split from the sums of its batches (see `metrics_of`)."""
    return metrics_of(add_up(batches))


def metrics_of(totals: Totals) -> dict[str, float]:
    """Computes the metrics of a split from its sums.

    Returns:
      `num_examples`, `num_labelled` if some examples have no label, and where they apply `accuracy`, `accuracy_low` and
      `accuracy_high` (its interval, see `interval`), `balanced_accuracy` and `macro_f1` (means of the recall and of the
      F1 of the classes that have examples, see `per_class`), `top5`, `nll` (nats), `ece` (expected calibration error
      over 15 equal bins of confidence), `kl` (KL(teacher || student), nats), `agreement` (equal top-1), `agreement5`
      (the teacher's top-1 is among the student's top 5) and `teacher_accuracy`. Rates are fractions.
    """
    count, labelled = totals["count"], totals.get("labelled", totals["count"])
    metrics: dict[str, float] = {"num_examples": int(count)}
    if labelled < count:
        metrics["num_labelled"] = int(labelled)
    if "classes" in totals and labelled:
        metrics["ece"] = expected_calibration_error(totals["calibration"])
    for name, total in totals.items():
        counted = labelled if name in _OF_LABELS else count
        if name not in _NO_MEANS and counted:
            metrics[name] = float(total / counted)
    if "classes" in totals and labelled:
        metrics["accuracy_low"], metrics["accuracy_high"] = interval(float(totals["accuracy"]), float(labelled))
        metrics |= average_over_classes(totals["classes"])
    return metrics


def interval(right: float, number: float) -> tuple[float, float]:
    """Computes the 95 % interval of a rate, `right` of `number` independent examples (the score interval, Wilson 1927).

    Near-duplicates are not independent: with them the true interval is wider.
    """
    rate, z2 = right / number, _Z**2
    middle = rate + z2 / (2 * number)
    half = _Z * math.sqrt(rate * (1 - rate) / number + z2 / (4 * number**2))
    low, high = ((middle + sign * half) / (1 + z2 / number) for sign in (-1, 1))
    return max(0.0, float(low)), min(1.0, float(high))


def per_class(classes: np.ndarray) -> dict[str, np.ndarray]:
    """Computes `precision`, `recall` and `f1` of each class, float64 [K], from the `classes` of `score`.

    All three are NaN for a class without examples. The precision of a class that is never answered is NaN, too, and
    its F1, 2 right / (examples + answers), is 0.
    """
    right, examples, answers = np.where(classes[1] > 0, classes, np.nan)
    with np.errstate(invalid="ignore"):
        return {"precision": right / answers, "recall": right / examples, "f1": 2 * right / (examples + answers)}


def average_over_classes(classes: np.ndarray) -> dict[str, float]:
    """Computes `balanced_accuracy` (Brodersen et al. 2010), the mean recall, and `macro_f1`, the mean F1.

    The means are over the classes that have examples. An answer that is another class lowers the recall of the
    example's own class.
    """
    scores = per_class(classes)
    return {name: float(np.nanmean(scores[of])) for name, of in (("balanced_accuracy", "recall"), ("macro_f1", "f1"))}


def _in_top5(logits: jax.Array, label: jax.Array) -> jax.Array:
    _, top = jax.lax.top_k(logits, min(5, logits.shape[-1]))
    return jnp.any(top == label[:, None], axis=-1)


def calibration_bins(logits: jax.Array, label: jax.Array, mask: jax.Array) -> jax.Array:
    """Sums confidence, correctness and the number of labelled examples by bin of confidence: [3, NUM_BINS]."""
    confidence = jnp.max(jax.nn.softmax(logits), -1)
    correct = (jnp.argmax(logits, -1) == label).astype(jnp.float32)
    bins = jnp.clip(jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1, 0, NUM_BINS - 1)
    values = jnp.where(mask & (label >= 0), jnp.stack([confidence, correct, jnp.ones_like(confidence)]), 0)
    return jnp.zeros((3, NUM_BINS)).at[:, bins].add(values)


def expected_calibration_error(bins: np.ndarray) -> float:
    """Computes the error from `calibration_bins` of all batches (Guo et al. 2017, arXiv 1706.04599, equation 3)."""
    confidence, correct, count = bins
    return float(np.abs(confidence - correct).sum() / count.sum())

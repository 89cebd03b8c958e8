"""Computes exact, masked evaluation metrics: the student against labels, and its fidelity to the teacher.

The device adds up one batch (`score`), and the host adds up batches in float64 (`summarize`). Every example counts
once, and padding does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_distill.step.objectives import kl_divergence

NUM_BINS = 15
_OF_LABELS = ("accuracy", "top5", "nll", "teacher_accuracy")  # examples without a label do not count in them

Sums = Mapping[str, jax.Array]


def score(
    student_logits: jax.Array, teacher_logits: jax.Array | None, label: jax.Array | None, mask: jax.Array
) -> dict[str, jax.Array]:
    """Adds up the metrics of the examples of one batch.

    Args:
      student_logits: float32 [B, K].
      teacher_logits: float32 [B, K], or None without a teacher.
      label: int32 [B], -1 for an example without one; or None from an unlabelled source.
      mask: bool [B], False for a row that does not count.
    """
    sums = {"count": jnp.sum(mask)}
    labelled = mask if label is None else mask & (label >= 0)

    def add(name: str, values: jax.Array) -> None:
        sums[name] = jnp.sum(jnp.where(labelled if name in _OF_LABELS else mask, values, 0))

    if label is not None:
        sums["labelled"] = jnp.sum(labelled)
        add("accuracy", jnp.argmax(student_logits, -1) == label)
        add("top5", _in_top5(student_logits, label))
        add("nll", optax.softmax_cross_entropy_with_integer_labels(student_logits, label))
        sums["calibration"] = calibration_bins(student_logits, label, mask)
    if teacher_logits is not None:
        teacher_label = jnp.argmax(teacher_logits, -1)
        add("kl", kl_divergence(teacher_logits, student_logits))
        add("agreement", jnp.argmax(student_logits, -1) == teacher_label)
        add("agreement5", _in_top5(student_logits, teacher_label))
        if label is not None:
            add("teacher_accuracy", teacher_label == label)
    return sums


def summarize(batches: Iterable[Sums]) -> dict[str, float]:
    """Computes the metrics of a split from the sums of its batches.

    Returns:
      `num_examples`, `num_labelled` if some examples have no label, and where they apply `accuracy`, `top5`, `nll`
      (nats), `ece` (expected calibration error over 15 equal bins of confidence), `kl` (KL(teacher || student), nats),
      `agreement` (equal top-1), `agreement5` (the teacher's top-1 is among the student's top 5) and
      `teacher_accuracy`. Rates are fractions.
    """
    totals: dict[str, np.ndarray] = {}

    def add(batch: Sums) -> None:
        for name, value in batch.items():
            totals[name] = totals.get(name, np.float64(0)) + np.asarray(value, np.float64)

    before: Sums = {}
    for batch in batches:  # adds one batch late: the device has the next one while the host waits for this
        add(before)
        before = batch
    add(before)
    count, calibration = totals.pop("count"), totals.pop("calibration", None)
    labelled = totals.pop("labelled", count)
    metrics: dict[str, float] = {"num_examples": int(count)}
    if labelled < count:
        metrics["num_labelled"] = int(labelled)
    if calibration is not None and labelled:
        metrics["ece"] = expected_calibration_error(calibration)
    counts = {name: labelled if name in _OF_LABELS else count for name in totals}
    return metrics | {name: float(total / counts[name]) for name, total in totals.items() if counts[name]}


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

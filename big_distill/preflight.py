"""What is proven of a teacher before a step is spent on it: that it is as good as it should be, folded too."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from big_distill import scoring, sharding, weights
from big_distill import teacher as teachers
from big_distill.config import Config
from big_distill.data.pipeline import EvalPipeline
from big_distill.errors import RunError
from big_distill.metrics import say
from big_distill.state import Batch, Teacher
from big_distill.steps import teacher_logits
from big_distill.views import to_unit


def check_teacher(
    networks: Sequence[weights.Network], config: Config, mesh: Mesh, data: EvalPipeline, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Measures every network of a teacher on real images, as its file has it and as the run will use it.

    Args:
      networks: as `teacher.read` returns them.
      config: resolved.
      mesh: of the run.
      data: the evaluation split.
      class_names: of the data.

    Returns:
      For each network its `accuracy` (a fraction, None without labels), and of the folded one against the plain
      one `fold_kl` (nats) and `fold_agreement` (a fraction).

    Raises:
      RunError: a network below `config.teacher.min_accuracy`, or whose folding costs more than
        `config.teacher.max_fold_kl`.
    """

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def step(folded: Teacher, plain: Teacher, batch: Batch) -> scoring.Sums:
        view = to_unit(batch["pixels"])
        student, teacher = teacher_logits(folded, view), teacher_logits(plain, view)
        assert student is not None
        return scoring.score(student, teacher, batch.get("label"), batch["mask"])

    results: list[dict[str, Any]] = []
    for index, network in enumerate(networks):
        plain, folded = (
            teachers.freeze([network], config, mesh, class_names, folded=folded) for folded in (False, True)
        )
        scores = scoring.summarize(step(folded, plain, sharding.to_devices(mesh, batch)) for batch in data)
        result: dict[str, Any] = {
            "accuracy": scores.get("teacher_accuracy"),
            "fold_kl": scores["kl"],
            "fold_agreement": scores["agreement"],
        }
        who = f"teacher {index + 1} of {len(networks)}" if len(networks) > 1 else "the teacher"
        _judge(result, config, who)
        accuracy = "" if result["accuracy"] is None else f"accuracy {100 * result['accuracy']:.2f} %; "
        say(
            f"{who} before training: {accuracy}folded to {config.teacher.dtype} KL {result['fold_kl']:.2g} nats, "
            f"agreement {100 * result['fold_agreement']:.2f} %"
        )
        results.append(result)
    return results


def _judge(result: dict[str, Any], config: Config, who: str) -> None:
    teacher, accuracy = config.teacher, result["accuracy"]
    if teacher.min_accuracy and accuracy is None:
        raise RunError(
            f"config.teacher.min_accuracy={teacher.min_accuracy} cannot be checked: the evaluation split has no labels"
        )
    if teacher.min_accuracy and accuracy < teacher.min_accuracy:
        raise RunError(
            f"{who} reaches {100 * accuracy:.2f} % of the evaluation split, below config.teacher.min_accuracy="
            f"{teacher.min_accuracy}: is its card right (input_mean, input_std, image_size)?"
        )
    if not result["fold_kl"] <= teacher.max_fold_kl:
        raise RunError(
            f"folding changes {who} by a KL of {result['fold_kl']:.3g} nats (agreement "
            f"{100 * result['fold_agreement']:.2f} %), above config.teacher.max_fold_kl={teacher.max_fold_kl}; "
            "config.teacher.dtype=float32 is the most exact"
        )

"""What is proven of a teacher before a step is spent on it: that it is as good as it should be, folded too."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from big_distill import scoring, sharding, weights
from big_distill import teacher as teachers
from big_distill.config import Config
from big_distill.data.pipeline import HostBatch
from big_distill.errors import RunError
from big_distill.metrics import say
from big_distill.state import Batch, Teacher
from big_distill.steps import teacher_logits
from big_distill.views import to_unit


def check_teacher(
    networks: Sequence[weights.Network],
    teacher: Teacher,
    config: Config,
    mesh: Mesh,
    batches: Iterable[HostBatch],
    class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Measures every network of a teacher on real images, as its file has it and as the run will use it.

    Args:
      networks: as `teacher.read` returns them.
      teacher: the same, as `teacher.freeze` returns them.
      config: resolved.
      mesh: of the run.
      batches: this process's part of them, `pixels`, `mask` and, for the accuracy, `label`.
      class_names: of the data.

    Returns:
      For each network what it is (`path`, `model`, `num_params`, `sha256` of its weights and its `card`), its
      `accuracy` (a fraction, None without labels), and of the frozen one against the plain one `fold_kl` (nats) and
      `fold_agreement` (a fraction).

    Raises:
      RunError: a network below `config.teacher.min_accuracy`, or whose folding costs more than
        `config.teacher.max_fold_kl`.
    """

    @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def step(frozen: Teacher, plain: Teacher, batch: Batch) -> scoring.Sums:
        view = to_unit(batch["pixels"])
        logits = teacher_logits(frozen, view)
        assert logits is not None
        return scoring.score(logits, teacher_logits(plain, view), batch.get("label"), batch["mask"])

    results: list[dict[str, Any]] = []
    for index, network in enumerate(networks):
        frozen, plain = teacher.only(index), teachers.freeze([network], config, mesh, class_names, folded=False)
        scores = scoring.summarize(step(frozen, plain, sharding.to_devices(mesh, batch)) for batch in batches)
        result = {
            **_description(network),
            "accuracy": scores.get("teacher_accuracy"),
            "fold_kl": scores["kl"],
            "fold_agreement": scores["agreement"],
        }
        who = f"teacher {index + 1} of {len(networks)}" if len(networks) > 1 else "the teacher"
        say(f"{who}, {_in_words(result)}")
        _judge(result, config, who)
        accuracy = "" if result["accuracy"] is None else f"accuracy {100 * result['accuracy']:.2f} %; "
        say(
            f"{who} before training: {accuracy}folded to {config.teacher.dtype} KL {result['fold_kl']:.2g} nats, "
            f"agreement {100 * result['fold_agreement']:.2f} %"
        )
        results.append(result)
    return results


def _description(network: weights.Network) -> dict[str, Any]:
    architecture = network.architecture
    return {
        "path": network.source,
        "model": dataclasses.asdict(architecture.model),
        "num_params": weights.num_params(network.variables["params"]),
        "sha256": weights.sha256(network.variables),
        "card": dataclasses.asdict(architecture.card),
    }


def _in_words(result: dict[str, Any]) -> str:
    """What was found in a file, all of which was loaded."""
    card, model = result["card"], result["model"]
    mean, std = (", ".join(f"{value:.3g}" for value in card[key]) for key in ("mean", "std"))
    return (
        f"{result['path']}: {model['name']}, {result['num_params']:,} parameters, all loaded "
        f"(sha256 {result['sha256'][:12]}); sees {card['image_size']} px, (x - ({mean})) / ({std})"
    )


def _judge(result: dict[str, Any], config: Config, who: str) -> None:
    teacher, accuracy = config.teacher, result["accuracy"]
    if teacher.min_accuracy and accuracy is None:
        raise RunError(
            f"config.teacher.min_accuracy={teacher.min_accuracy} cannot be checked: there is no evaluation split "
            "with labels"
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

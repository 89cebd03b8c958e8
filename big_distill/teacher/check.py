"""Measures a teacher before the first step, and refuses one that is worse than the config allows, also frozen."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from big_distill import weights
from big_distill.config import Config, TeacherConfig
from big_distill.data.pipeline import EvalPipeline, TrainPipeline
from big_distill.data.splits import HostBatch
from big_distill.errors import RunError
from big_distill.parallel import processes, sharding
from big_distill.run_dir.layout import PREFLIGHT_FILE, read_json, write_json
from big_distill.state import Batch, Teacher
from big_distill.step import scoring
from big_distill.step.steps import at_precision, teacher_logits
from big_distill.step.views import to_unit
from big_distill.teacher import activation_ranges, class_order, frozen
from big_distill.teacher.networks import identity as identity_of
from big_distill.terminal import say

_NUM_CROPS = 256
_RESULT = {
    "num_params": int,
    "accuracy": (float, None),
    "plain_accuracy": (float, None),
    "fold_kl": float,
    "fold_agreement": float,
}


@dataclasses.dataclass(frozen=True)
class Checked:
    """Holds a teacher that may be trained with.

    sha256: hash of its weights as they are used, frozen.
    num_params: number of parameters of its networks as their files have them.
    """

    teacher: Teacher
    sha256: str
    num_params: int


def prepare(
    networks: Sequence[weights.Network],
    config: Config,
    workdir: pathlib.Path,
    mesh: Mesh,
    train_data: TrainPipeline,
    eval_data: EvalPipeline | None,
    class_names: Sequence[str],
) -> Checked | None:
    """Freezes a run's teacher and checks it; returns None for a supervised run.

    The teacher is measured on the evaluation split, or without one on crops of training images, once for every form of
    it. The results are kept in the run directory, and judged in every session.

    Args:
      networks: networks as `networks.read` returns them.
      config: the resolved config.
      workdir: the run directory.
      mesh: mesh of the run.
      train_data: the training data; their first crops calibrate int8.
      eval_data: the evaluation split, if there is one.
      class_names: class names of the data.

    Raises:
      RunError: a network below `config.teacher.min_accuracy`, or whose freezing costs more than
        `config.teacher.max_fold_kl`.
    """
    if not networks:
        return None
    for network in networks:
        for line in weights.other_input(network, config.view.fit, train_data.source.bit_depth):
            say(line)
    identity = identity_of(networks)
    crops = functools.partial(_first_crops, config, train_data)
    ranges: Sequence[activation_ranges.Ranges] | None = None
    if config.teacher.dtype == "int8":
        ranges = _kept_ranges(networks, config, workdir, mesh, identity, crops)
    teacher = frozen.freeze(networks, config, mesh, class_names, ranges)
    sha256 = weights.sha256(teacher.variables)
    measured_on = eval_data.source.fingerprint if eval_data else ""
    key = hashlib.sha256(json.dumps([identity, sha256, list(class_names), measured_on]).encode()).hexdigest()
    for network in networks:
        for line in (*network.remarks, weights.in_words(network)):
            if line:
                say(line)
    results = processes.from_first_process(_read(workdir, key) if jax.process_index() == 0 else None)
    if results is None or len(results) != len(networks):
        results = measure(networks, teacher, config, mesh, eval_data or crops(), class_names)
        for who, result in _named(results):
            say(f"{who}, {_in_words(result)}")
        if jax.process_index() == 0:
            write_json(workdir / PREFLIGHT_FILE, {"key": key, "teacher": identity, "teachers": results})
    for network, (who, result) in zip(networks, _named(results), strict=True):
        if remark := class_order.warning(network, result, class_names, who):
            say(remark)
        _judge(result, config.teacher, who)
        accuracy = "" if result["accuracy"] is None else f"accuracy {100 * result['accuracy']:.2f} %; "
        say(
            f"{who} before training: {accuracy}freezing in {config.teacher.dtype} changes it by a KL of "
            f"{result['fold_kl']:.2g} nats, agreement {100 * result['fold_agreement']:.2f} %"
        )
    return Checked(teacher, sha256, sum(result["num_params"] for result in results))


def measure(
    networks: Sequence[weights.Network],
    teacher: Teacher,
    config: Config,
    mesh: Mesh,
    batches: Iterable[HostBatch],
    class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Measures every network of a teacher on real images, as the run will use it and as its file has it, in float32.

    Args:
      networks: networks as `networks.read` returns them.
      teacher: the same networks, frozen.
      config: the resolved config.
      mesh: mesh of the run.
      batches: this process's part of the batches: `pixels`, `mask` and, for the accuracy, `label`.
      class_names: class names of the data.

    Returns:
      One result a network: its identity (`path`, `model`, `num_params`, `sha256` of its weights and its `card`), the
      `accuracy` of the frozen network and the `plain_accuracy` of the plain one (fractions, None without labels),
      `fold_kl` (nats) and `fold_agreement` (a fraction) of the frozen one against the plain one, `num_labelled`, and
      `orders`: the accuracy of a network without class names if its classes are in other orders, by their names.
    """
    orders = class_order.candidates(class_names)

    def step(frozen: Teacher, plain: Teacher, batch: Batch) -> tuple[scoring.Sums, jax.Array]:
        view = to_unit(batch["pixels"])
        logits = teacher_logits(frozen, view)
        assert logits is not None
        with jax.default_matmul_precision("highest"):
            reference = teacher_logits(plain, view)
        label, mask = batch.get("label"), batch["mask"]
        tried = {} if frozen.cards[0].class_names else orders
        return scoring.score(logits, reference, label, mask), class_order.hits(logits, label, mask, tried)

    step = jax.jit(at_precision(step, config.matmul_precision), out_shardings=sharding.replicated(mesh))

    results: list[dict[str, Any]] = []
    for index, network in enumerate(networks):
        one, plain = teacher.one(index), frozen.plain(network, config, mesh, class_names)
        counted: list[jax.Array] = []

        def sums(one: Teacher, plain: Teacher, counted: list[jax.Array]) -> Iterator[scoring.Sums]:
            for batch in batches:
                total, hits = step(one, plain, sharding.to_devices(mesh, batch))
                counted.append(hits)
                yield total

        scores = scoring.summarize(sums(one, plain, counted))
        card = network.architecture.card
        num_labelled = int(scores.get("num_labelled", scores["num_examples"])) if "accuracy" in scores else 0
        results.append(
            {
                "path": network.source,
                "model": network.architecture.identity,
                "num_params": weights.num_params(network.variables["params"]),
                "sha256": weights.sha256(network.variables),
                "card": dataclasses.asdict(card),
                "accuracy": scores.get("accuracy"),
                "plain_accuracy": scores.get("teacher_accuracy"),
                "fold_kl": scores["kl"],
                "fold_agreement": scores["agreement"],
                "num_labelled": num_labelled,
                "orders": {} if card.class_names else _shares(orders, counted, num_labelled),
            }
        )
    return results


def _shares(orders: Iterable[str], hits: Sequence[jax.Array], num_labelled: int) -> dict[str, float]:
    """Divides the sums of `class_order.hits` by the number of examples that have a label."""
    if not num_labelled:
        return {}
    totals = np.stack([np.asarray(batch) for batch in hits]).sum(axis=0, dtype=np.int64)
    return dict(zip(orders, (totals / num_labelled).tolist(), strict=True))


def _kept_ranges(
    networks: Sequence[weights.Network], config: Config, workdir: pathlib.Path, mesh: Mesh, identity: str, crops: Any
) -> tuple[activation_ranges.Ranges, ...]:
    """Reads the ranges of the run's first session, or measures and keeps them now."""
    ranges = processes.from_first_process(
        activation_ranges.read(workdir, identity) if jax.process_index() == 0 else None
    )
    if ranges is None:
        ranges = activation_ranges.measure(networks, config.dtype, mesh, crops())
        if jax.process_index() == 0:
            activation_ranges.write(workdir, identity, ranges)
    return tuple(ranges)


def _first_crops(config: Config, train_data: TrainPipeline) -> list[HostBatch]:
    """Takes this process's part of the first batches that the teacher will see, each as large as the step's parts."""
    parts: list[HostBatch] = []
    num_batches = -(-_NUM_CROPS // config.batch_size)
    for step in range(min(num_batches, config.total_steps)):
        batch = train_data.batch(step)
        crops = np.split(batch.get("teacher_pixels", batch["pixels"]), config.accumulate_steps)
        parts += [{"pixels": pixels, "mask": np.ones(len(pixels), bool)} for pixels in crops]
    return parts[: -(-_NUM_CROPS * config.accumulate_steps // config.batch_size)]


def _read(workdir: pathlib.Path, key: str) -> list[dict[str, Any]] | None:
    file = workdir / PREFLIGHT_FILE
    kept = read_json(file, {"key": str, "teachers": [_RESULT]}) if file.is_file() else {}
    if kept.get("key") != key:
        return None
    for result in kept["teachers"]:  # those of an earlier version have no orders
        orders, num_labelled = result.get("orders", {}), result.get("num_labelled", 0)
        shares = list(orders.values()) if isinstance(orders, dict) else [None]
        if type(num_labelled) is not int or not all(type(share) is float for share in shares):
            raise RunError(f"{file} holds no accuracies; remove it and the run's own command makes it again")
    return kept["teachers"]


def _named(results: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    if len(results) == 1:
        return [("the teacher", results[0])]
    return [(f"teacher {index} of {len(results)}", result) for index, result in enumerate(results, 1)]


def _in_words(result: dict[str, Any]) -> str:
    """Describes in words what a file has, all of which was loaded."""
    card, model = result["card"], result["model"]
    mean, std = (", ".join(f"{value:.3g}" for value in card[key]) for key in ("mean", "std"))
    return (
        f"{result['path']}: {model['name']}, {result['num_params']:,} parameters, all loaded "
        f"(sha256 {result['sha256'][:12]}); sees {card['image_size']} px, (x - ({mean})) / ({std})"
    )


def _judge(result: dict[str, Any], teacher: TeacherConfig, who: str) -> None:
    accuracy = result["accuracy"]
    if teacher.min_accuracy and accuracy is None:
        raise RunError(
            f"config.teacher.min_accuracy={teacher.min_accuracy} cannot be checked: there is no evaluation split "
            "with labels"
        )
    if teacher.min_accuracy and accuracy < teacher.min_accuracy:
        raise RunError(
            f"{who} reaches {100 * accuracy:.2f} % of the evaluation split ({100 * result['plain_accuracy']:.2f} % "
            f"before freezing), below config.teacher.min_accuracy={teacher.min_accuracy}: is its card right "
            "(input_mean, input_std, image_size)?"
        )
    if not result["fold_kl"] <= teacher.max_fold_kl:
        raise RunError(
            f"freezing changes {who} by a KL of {result['fold_kl']:.3g} nats (agreement "
            f"{100 * result['fold_agreement']:.2f} %), above config.teacher.max_fold_kl={teacher.max_fold_kl}; "
            "config.teacher.dtype=float32 is the most exact"
        )

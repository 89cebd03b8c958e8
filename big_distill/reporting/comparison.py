"""Compares a student with its teacher on a split: class by class, by confidence, and on examples where they differ."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import Mesh
from PIL import Image
from scipy.stats import binomtest, false_discovery_control

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import Config
from big_distill.data.pipeline import EvalPipeline
from big_distill.data.sources import BUILT_IN
from big_distill.errors import BigDistillError, ConfigError, RunError
from big_distill.parallel import sharding
from big_distill.reporting import classes
from big_distill.reporting.records import check_weights
from big_distill.run_dir.layout import read_summary
from big_distill.state import Batch, Card, Model, Teacher
from big_distill.step import scoring, steps
from big_distill.step.views import for_network, to_unit
from big_distill.training.evaluation import jit_eval, mesh_for, open_eval, with_data

TOP = 3
MOST_IN_FIGURE = 30
MOST_PAIRS = 10
_FALSE_DISCOVERIES = 0.05  # largest expected share of the classes called significant
_LARGEST_PICTURE = 128  # px
_Answered = dict[str, tuple[jax.Array, jax.Array, jax.Array | None]]  # network -> a batch's part of its `Answers`


@dataclasses.dataclass(frozen=True)
class Answers:
    """Holds the answers of one network to N examples.

    classes: int [N, TOP], the likeliest first (fewer columns if there are fewer classes).
    probabilities: float32 [N, TOP], those of `classes`.
    bins: float64 [3, NUM_BINS], `scoring.calibration_bins` of all examples; None without labels.
    by_class: int [3, K], the `classes` of `scoring.score`; None without labels.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    bins: np.ndarray | None
    by_class: np.ndarray | None

    @property
    def confidence(self) -> float:
        """Computes the mean probability of the likeliest class."""
        return float(self.probabilities[:, 0].mean())

    @property
    def accuracy(self) -> float | None:
        """Computes the share of the examples whose likeliest class is right; None without labels."""
        return None if self.bins is None else float(self.bins[1].sum() / self.bins[2].sum())

    @property
    def scores(self) -> dict[str, float]:
        """Computes `balanced_accuracy`, `macro_f1` and the accuracy's interval as `scoring` does; {} without labels."""
        if self.by_class is None:
            return {}
        low, high = scoring.interval(*map(float, self.by_class[:2].sum(axis=1)))
        averages = scoring.average_over_classes(self.by_class)
        return {"accuracy_low": low, "accuracy_high": high, **averages}

    @property
    def ece(self) -> float | None:
        """Computes the expected calibration error as `scoring` does; None without labels."""
        return None if self.bins is None else scoring.expected_calibration_error(self.bins)


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """Describes one class of a split.

    num_examples: number of examples that have this class.
    student, teacher: number of them that each network gets right.
    lost: number that only the teacher gets right; `won`: that only the student gets right.
    p_value: probability that two equally good networks differ as much or more (McNemar 1947: the exact sign test,
      two-sided).
    significant: True if the difference is more than chance among so many classes. At most one in 20 of the classes
      called significant is expected to be chance (Benjamini & Hochberg 1995).
    """

    name: str
    num_examples: int
    student: int
    teacher: int
    lost: int
    won: int
    p_value: float
    significant: bool

    @property
    def difference(self) -> float:
        """Returns the student's accuracy minus its teacher's."""
        return (self.student - self.teacher) / self.num_examples


@dataclasses.dataclass(frozen=True)
class Example:
    """Holds an image that one network gets right and the other wrong, or on which the teacher and the label disagree.

    name: that by which a person finds it, such as its file.
    truth: its class; None without labels.
    png: the image as the student sees it, reduced to at most 128 px.
    student, teacher: their likeliest three classes, each with its probability.
    """

    name: str
    png: bytes
    truth: str | None
    student: tuple[tuple[str, float], ...]
    teacher: tuple[tuple[str, float], ...]

    @property
    def side(self) -> int:
        """Returns the width of the image in pixels."""
        return int.from_bytes(self.png[16:20], "big")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Holds the answers of a student on a split, and those of its teacher if it has one.

    num_examples: number of examples that could be read.
    class_names: names of the K classes.
    by_class: scores in the data's order; () without labels or without a teacher.
    confused: the pairs (label, another answer of the student, number of examples), most examples first; at most
      `MOST_PAIRS`.
    confusion: int [K, K], the number of examples by label and the student's answer; None without labels, and of more
      than `MOST_IN_FIGURE` classes.
    num_contradicted: number of labels that are not the teacher's answer; None without a teacher or labels.
    examples: 'lost', right by the teacher alone, and 'won', right by the student alone, from the classes with most of
      them; without labels 'differ', on which they disagree; 'contradicted', the labels of which the teacher is surest
      that they are another class.
    problems: a line about each thing that could not be compared.
    """

    split: str
    num_examples: int
    student: Answers
    teacher: Answers | None
    class_names: tuple[str, ...]
    by_class: tuple[ClassScore, ...]
    confused: tuple[tuple[str, str, int], ...]
    confusion: np.ndarray | None
    num_contradicted: int | None
    examples: dict[str, list[Example]]
    problems: tuple[str, ...]

    @property
    def agreement(self) -> float | None:
        """Computes the share of the examples of which both say the same; None without a teacher."""
        if self.teacher is None:
            return None
        return float((self.student.classes[:, 0] == self.teacher.classes[:, 0]).mean())


def compare(
    workdir: pathlib.Path, config: Config, split: str | None, data_dir: str | None, most_examples: int, name: str
) -> Comparison:
    """Runs a finished run's student and its teacher over a split of the run's data.

    The default split is the run's test split, else its validation split. `name` is for the progress bar. Raises
    BigDistillError if there are no data, or no student.
    """
    if config.evaluated_on.name not in BUILT_IN:  # otherwise the flag is for other runs of the page
        config = with_data(config, {"data_dir": data_dir})
    split = split or config.evaluated_on.test or config.evaluated_on.validation
    if not split:
        raise ConfigError("it has no test split and no validation split: --split says what to compare on")
    mesh = mesh_for(config)
    student = weights.load(workdir)
    check_weights(workdir, student, read_summary(workdir))
    card = student.architecture.card
    data = open_eval(config, split, student.architecture.bit_depth, card.class_names)
    teacher, problems = None, []
    try:
        teacher = teachers.load(config, workdir, mesh, card.class_names)
    except (BigDistillError, OSError) as error:
        problems.append(f"its teacher cannot be asked: {error}")
    answer = jit_eval(_make_answer, student.architecture, config, mesh)
    answers, label, ids = _ask(answer, student.variables, teacher, data, mesh, config.num_classes, name)
    num_examples = len(answers["student"].classes)
    if not num_examples:
        raise RunError(f"none of the images of {split} can be read")
    for who, answered in list(answers.items()):
        if unknown := int((~np.isfinite(answered.probabilities)).any(axis=-1).sum()):
            line = f"its {who}'s answers are not finite on {unknown:,} of {num_examples:,} images of {split}"
            if who == "student":
                raise RunError(line)
            problems.append(line)
            del answers[who]
    if label is None:
        problems.append("its data have no labels, so its accuracy is not known")
    names = list(data.source.class_names or card.class_names or map(str, range(config.num_classes)))
    by_class: tuple[ClassScore, ...] = ()
    chosen: dict[str, list[int]] = {"lost": [], "won": [], "differ": [], "contradicted": []}
    num_contradicted = None
    if "teacher" in answers:
        mine, taught = (answers[who].classes[:, 0] for who in ("student", "teacher"))
        choose_of = functools.partial(choose, confidence=answers["student"].probabilities[:, 0], most=most_examples)
        if label is None:
            chosen["differ"] = choose_of(mine != taught, taught)
        else:
            known = label >= 0
            by_class = class_scores(names, *(of_all[known] for of_all in (label, mine == label, taught == label)))
            chosen["lost"] = choose_of((taught == label) & (mine != label), label)
            chosen["won"] = choose_of((mine == label) & (taught != label), label)
            chosen["contradicted"], num_contradicted = contradicted(
                label, taught, answers["teacher"].probabilities[:, 0], most_examples
            )
    pairs, matrix = [], None
    if label is not None:
        pairs = classes.confused(label, answers["student"].classes[:, 0], MOST_PAIRS)
        if len(names) <= MOST_IN_FIGURE:
            matrix = classes.confusion(label, answers["student"].classes[:, 0], len(names))
    pictures = _pictures(data, card, sorted(set(itertools.chain(*chosen.values()))))
    return Comparison(
        split=split,
        num_examples=num_examples,
        student=answers["student"],
        teacher=answers.get("teacher"),
        class_names=tuple(names),
        by_class=by_class,
        confused=tuple((names[truth], names[other], number) for truth, other, number in pairs),
        confusion=matrix,
        num_contradicted=num_contradicted,
        examples={
            kind: [
                _example(data.source.example_name(int(ids[row])), row, pictures[row], label, answers, names)
                for row in rows
            ]
            for kind, rows in chosen.items()
        },
        problems=tuple(problems),
    )


def _ask(
    answer: Callable[..., _Answered],
    variables: weights.Variables,
    teacher: Teacher | None,
    data: EvalPipeline,
    mesh: Mesh,
    num_classes: int,
    name: str,
) -> tuple[dict[str, Answers], np.ndarray | None, np.ndarray]:
    """Collects the answers to all readable examples by network ('student', 'teacher'), labels if any, and ids."""
    parts, labels, masks = [], [], []
    for batch in tqdm.tqdm(data, name, data.num_batches, unit="batch", disable=not sys.stderr.isatty(), leave=False):
        mask = batch["mask"]
        answered = jax.device_get(answer(variables, teacher, sharding.to_devices(mesh, batch)))
        parts.append({who: (top[mask], probs[mask], bins) for who, (top, probs, bins) in answered.items()})
        masks.append(mask)
        if "label" in batch:
            labels.append(batch["label"][mask])
    label = np.concatenate(labels) if labels else None
    if label is not None and (label < 0).all():
        label = None
    answers = {}
    for who in parts[0]:
        answered, probabilities, bins = zip(*(part[who] for part in parts), strict=True)
        summed = None if label is None else np.asarray(bins, np.float64).sum(axis=0)
        answered = np.concatenate(answered)
        of_class = None if label is None else classes.count(label, answered[:, 0], num_classes)
        answers[who] = Answers(answered, np.concatenate(probabilities), summed, of_class)
    return answers, label, np.flatnonzero(np.concatenate(masks))


def contradicted(label: np.ndarray, taught: np.ndarray, confidence: np.ndarray, most: int) -> tuple[list[int], int]:
    """Chooses the rows whose label is not the teacher's answer, the surest first. Arrays are [N].

    Returns at most `most` rows, and the number of all.

    Either is wrong. A teacher that was trained on these labels may have learned a wrong one by heart.
    """
    rows = np.flatnonzero((label >= 0) & (label != taught))
    return rows[np.argsort(-confidence[rows], kind="stable")][:most].tolist(), len(rows)


def class_scores(
    names: Sequence[str], label: np.ndarray, student_right: np.ndarray, teacher_right: np.ndarray
) -> tuple[ClassScore, ...]:
    """Scores each class that has examples, and finds which differences are more than chance. Arrays are [N]."""
    lost, won = teacher_right & ~student_right, student_right & ~teacher_right
    sets = (slice(None), student_right, teacher_right, lost, won)
    counts = [np.bincount(label[chosen], minlength=len(names)).tolist() for chosen in sets]
    rows = [row for row in zip(names, *counts, strict=True) if row[1]]
    p_values = [float(binomtest(won, lost + won).pvalue) if lost + won else 1.0 for *_, lost, won in rows]
    adjusted = false_discovery_control(p_values) if rows else []
    return tuple(
        ClassScore(name, num_examples, student, teacher, lost, won, p, bool(q <= _FALSE_DISCOVERIES))
        for (name, num_examples, student, teacher, lost, won), p, q in zip(rows, p_values, adjusted, strict=True)
    )


def choose(where: np.ndarray, label: np.ndarray, confidence: np.ndarray, most: int) -> list[int]:
    """Chooses at most `most` of the rows of a mask. Arrays are [N].

    Classes take turns, those with most rows first. In each class the rows of greatest confidence come first.
    """
    rows = np.flatnonzero(where)
    by_class = {c: rows[label[rows] == c] for c in np.unique(label[rows])}
    ranked = sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0]))
    turns = itertools.zip_longest(*(same[np.argsort(-confidence[same], kind="stable")] for _, same in ranked))
    in_turn = (int(row) for turn in turns for row in turn if row is not None)
    return list(itertools.islice(in_turn, most))


def _make_answer(model: Model, card: Card) -> Callable[[weights.Variables, Teacher | None, Batch], _Answered]:
    """Makes the function from variables, teacher and batch to both networks' answers. Without labels it has no bins."""
    eval_logits = steps.make_eval_logits(model, card)

    def answer(variables: weights.Variables, teacher: Teacher | None, batch: Batch) -> _Answered:
        answered: _Answered = {}
        for who, logits in zip(("student", "teacher"), eval_logits(variables, teacher, batch), strict=True):
            if logits is not None:
                probabilities, top = jax.lax.top_k(jax.nn.softmax(logits), min(TOP, logits.shape[-1]))
                has_labels = "label" in batch
                bins = scoring.calibration_bins(logits, batch["label"], batch["mask"]) if has_labels else None
                answered[who] = top, probabilities, bins
        return answered

    return answer


def _pictures(data: EvalPipeline, card: Card, rows: Sequence[int]) -> dict[int, bytes]:
    """Renders images as the student sees them, as PNG, by row among the readable examples."""
    pictures: dict[int, bytes] = {}
    start, as_seen = 0, dataclasses.replace(card, mean=(0.0,), std=(1.0,))
    for batch in data if rows else ():
        pixels = batch["pixels"][batch["mask"]]
        here = [row for row in rows if start <= row < start + len(pixels)]
        if here:
            seen = np.asarray(for_network(to_unit(jnp.asarray(pixels[np.subtract(here, start)])), as_seen))
            values = np.rint(255 * seen).clip(0, 255).astype(np.uint8)
            pictures |= dict(zip(here, map(_png, values), strict=True))
        start += len(pixels)
        if len(pictures) == len(rows):
            break
    return pictures


def _png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _example(
    name: str, row: int, png: bytes, label: np.ndarray | None, answers: dict[str, Answers], names: Sequence[str]
) -> Example:
    student, teacher = (
        tuple((names[c], float(p)) for c, p in zip(answered.classes[row], answered.probabilities[row], strict=True))
        for answered in (answers["student"], answers["teacher"])
    )
    return Example(name, png, None if label is None else names[label[row]], student, teacher)

"""A student beside its teacher on a split: class by class, how sure they are, and examples on which they differ."""

from __future__ import annotations

import dataclasses
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
from big_distill.errors import BigDistillError, ConfigError, RunError
from big_distill.parallel import sharding
from big_distill.run_dir.layout import SUMMARY_FILE, WEIGHTS_FILE, read_summary
from big_distill.state import Batch, Card, Model, Teacher
from big_distill.step import scoring, steps
from big_distill.step.views import for_network, to_unit
from big_distill.training.evaluation import jit_eval, mesh_for, open_eval, student_of

TOP = 3
_FALSE_DISCOVERIES = 0.05  # of the classes that are called significant
_LARGEST_PICTURE = 128  # px
_Answered = tuple[jax.Array, jax.Array, jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one network says of N examples.

    classes: int [N, TOP], the likeliest first (fewer columns if there are fewer classes).
    probabilities: float32 [N, TOP], of these.
    bins: float64 [3, NUM_BINS], `scoring.calibration_bins` of all; None without labels.
    """

    classes: np.ndarray
    probabilities: np.ndarray
    bins: np.ndarray | None

    @property
    def confidence(self) -> float:
        """Mean probability of the likeliest class."""
        return float(self.probabilities[:, 0].mean())

    @property
    def accuracy(self) -> float | None:
        """Share of the examples of which the likeliest class is right; None without labels."""
        return None if self.bins is None else float(self.bins[1].sum() / self.bins[2].sum())

    @property
    def ece(self) -> float | None:
        """Expected calibration error, as `scoring` has it."""
        return None if self.bins is None else scoring.expected_calibration_error(self.bins)


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """One class of a split.

    num_examples: of this class.
    student, teacher: how many of them each calls so.
    lost: how many the teacher calls so and the student does not; `won`: the other way round.
    p_value: how likely two equally good networks differ as much or more (McNemar 1947: the exact sign test, two-sided).
    significant: whether it is less than chance would have among so many classes: at most one in 20 of those that are
      called so is expected to be chance (Benjamini & Hochberg 1995).
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
        """The student's accuracy minus its teacher's."""
        return (self.student - self.teacher) / self.num_examples


@dataclasses.dataclass(frozen=True)
class Example:
    """An image on which the networks differ: one is right and the other wrong, or without labels any two answers.

    truth: None without labels.
    png: what the student sees, reduced to at most 128 px.
    student, teacher: (class, probability) of the likeliest three.
    """

    png: bytes
    truth: str | None
    student: tuple[tuple[str, float], ...]
    teacher: tuple[tuple[str, float], ...]

    @property
    def side(self) -> int:
        """The width of the image in pixels."""
        return int.from_bytes(self.png[16:20], "big")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A student on a split, beside its teacher if it has one.

    num_examples: that could be read.
    by_class: in the data's order; () without labels or without a teacher.
    lost, won: examples that only the teacher, and only the student, gets right, from the classes with most of them.
    differ: without labels, examples on which they disagree.
    problems: a line about each thing that could not be compared.
    """

    split: str
    num_examples: int
    student: Answers
    teacher: Answers | None
    by_class: tuple[ClassScore, ...]
    lost: tuple[Example, ...]
    won: tuple[Example, ...]
    differ: tuple[Example, ...]
    problems: tuple[str, ...]

    @property
    def agreement(self) -> float | None:
        """How often both say the same; None without a teacher."""
        if self.teacher is None:
            return None
        return float((self.student.classes[:, 0] == self.teacher.classes[:, 0]).mean())


def compare(
    workdir: pathlib.Path, config: Config, split: str | None, data_dir: str | None, num_examples: int, name: str
) -> Comparison:
    """Runs a finished run's student and its teacher over a split of the run's data.

    Args:
      workdir: the run directory.
      config: its config.
      split: in TFDS syntax; None: the run's test split, else its validation split.
      data_dir: where TFDS sets are, if not where the run had them.
      num_examples: how many images are shown, at most, of each kind.
      name: of the run, for the progress bar.

    Raises:
      BigDistillError: there are no data, or no student.
    """
    if data_dir:
        config = dataclasses.replace(config, eval_source=dataclasses.replace(config.evaluated_on, data_dir=data_dir))
    split = split or config.evaluated_on.test or config.evaluated_on.validation
    if not split:
        raise ConfigError("it has no test split and no validation split: --split says what to compare on")
    mesh = mesh_for(config)
    student = _student(workdir, mesh)
    card = student.architecture.card
    data = open_eval(config, split)
    teacher, problems = None, []
    try:
        teacher = teachers.load(config, workdir, mesh, card.class_names)
    except (BigDistillError, OSError) as error:
        problems.append(f"its teacher cannot be asked: {error}")
    answer = jit_eval(_make_answers, student.architecture, config, mesh)
    found, label, count = _ask(answer, student.variables, teacher, data, mesh, name)
    if not count:
        raise RunError(f"none of the images of {split} can be read")
    if line := _not_finite("student", found["student"], split):
        raise RunError(line)
    if "teacher" in found and (line := _not_finite("teacher", found["teacher"], split)):
        problems.append(line)
        del found["teacher"]
    if label is None:
        problems.append("its data have no labels: what is right is not known")
    names = _names(config, card, data)
    by_class: tuple[ClassScore, ...] = ()
    if label is not None and "teacher" in found:
        student_right, teacher_right = (found[who].classes[:, 0] == label for who in ("student", "teacher"))
        by_class = class_scores(names, label, student_right, teacher_right)
    chosen = _chosen(found, label, num_examples)
    pictures = _pictures(data, card, [row for rows in chosen.values() for row in rows])
    examples = {
        kind: tuple(_example(row, pictures[row], label, found, names) for row in rows) for kind, rows in chosen.items()
    }
    return Comparison(
        split=split,
        num_examples=count,
        student=found["student"],
        teacher=found.get("teacher"),
        by_class=by_class,
        lost=examples["lost"],
        won=examples["won"],
        differ=examples["differ"],
        problems=tuple(problems),
    )


def _student(workdir: pathlib.Path, mesh: Mesh) -> weights.Network:
    """Raises RunError if the weights are not those of the summary."""
    student = student_of(workdir, "final", mesh)
    summary = read_summary(workdir)
    if summary and weights.sha256(student.variables["params"]) != summary["params_sha256"]:
        raise RunError(f"{workdir / WEIGHTS_FILE} does not hold the weights that {SUMMARY_FILE} has the hash of")
    return student


def _not_finite(who: str, answers: Answers, split: str) -> str:
    """A line, if some of the answers are not."""
    unknown = int((~np.isfinite(answers.probabilities)).any(axis=-1).sum())
    count = len(answers.probabilities)
    return f"its {who}'s answers are not finite on {unknown:,} of {count:,} images of {split}" if unknown else ""


def _chosen(found: dict[str, Answers], label: np.ndarray | None, most: int) -> dict[str, list[int]]:
    """The examples to show, by kind: 'lost', 'won' and 'differ', as `Comparison` has them."""
    chosen: dict[str, list[int]] = {"lost": [], "won": [], "differ": []}
    if "teacher" not in found:
        return chosen
    confidence = found["student"].probabilities[:, 0]
    ours, theirs = (found[who].classes[:, 0] for who in ("student", "teacher"))
    if label is None:
        return chosen | {"differ": choose(ours != theirs, theirs, confidence, most)}
    lost, won = (theirs == label) & (ours != label), (ours == label) & (theirs != label)
    return chosen | {"lost": choose(lost, label, confidence, most), "won": choose(won, label, confidence, most)}


def _ask(
    answer: Callable[..., dict[str, _Answered]],
    variables: weights.Variables,
    teacher: Teacher | None,
    data: EvalPipeline,
    mesh: Mesh,
    name: str,
) -> tuple[dict[str, Answers], np.ndarray | None, int]:
    """({'student': ..., 'teacher': ...}, labels, number) of all examples that can be read; labels are None without."""
    columns: dict[str, list[np.ndarray]] = {}
    bins: dict[str, np.ndarray] = {}
    for batch in tqdm.tqdm(data, name, data.num_batches, unit="batch", disable=not sys.stderr.isatty(), leave=False):
        mask = batch["mask"]
        answers = jax.device_get(answer(variables, teacher, sharding.to_devices(mesh, batch)))
        for who, (classes, probabilities, calibration) in answers.items():
            columns.setdefault(f"{who} classes", []).append(classes[mask])
            columns.setdefault(f"{who} probabilities", []).append(probabilities[mask])
            if calibration is not None:
                bins[who] = bins.get(who, 0) + np.asarray(calibration, np.float64)
        columns.setdefault("label", []).append(batch.get("label", np.full(len(mask), -1))[mask])
    joined = {key: np.concatenate(parts) for key, parts in columns.items()}
    found = {
        who: Answers(joined[f"{who} classes"], joined[f"{who} probabilities"], bins.get(who))
        for who in ("student", "teacher")
        if f"{who} classes" in joined
    }
    return found, joined["label"] if bins else None, len(joined["label"])


def class_scores(
    names: Sequence[str], label: np.ndarray, student_right: np.ndarray, teacher_right: np.ndarray
) -> tuple[ClassScore, ...]:
    """Counts, for each class that has examples, and which differences are more than chance.

    Args:
      names: of the classes.
      label: int [N].
      student_right, teacher_right: bool [N].
    """
    sets = (
        np.ones(len(label), bool),
        student_right,
        teacher_right,
        teacher_right & ~student_right,
        student_right & ~teacher_right,
    )
    counts = [np.bincount(label[chosen], minlength=len(names)).tolist() for chosen in sets]
    found = [row for row in zip(names, *counts, strict=True) if row[1]]
    p_values = [float(binomtest(won, lost + won).pvalue) if lost + won else 1.0 for *_, lost, won in found]
    adjusted = false_discovery_control(p_values) if found else []
    return tuple(
        ClassScore(name, num_examples, student, teacher, lost, won, p, bool(q <= _FALSE_DISCOVERIES))
        for (name, num_examples, student, teacher, lost, won), p, q in zip(found, p_values, adjusted, strict=True)
    )


def choose(where: np.ndarray, label: np.ndarray, confidence: np.ndarray, most: int) -> list[int]:
    """Rows to show: the classes with most of them in turn, in each the rows of greatest confidence first.

    Args:
      where: bool [N], the rows to choose from.
      label: int [N].
      confidence: float [N].
      most: how many are chosen.
    """
    rows = np.flatnonzero(where)
    by_class = {c: rows[label[rows] == c] for c in np.unique(label[rows])}
    ranked = sorted(by_class.items(), key=lambda item: (-len(item[1]), item[0]))
    turns = itertools.zip_longest(*(own[np.argsort(-confidence[own], kind="stable")] for _, own in ranked))
    in_turn = (int(row) for turn in turns for row in turn if row is not None)
    return list(itertools.islice(in_turn, most))


def _make_answers(
    model: Model, card: Card
) -> Callable[[weights.Variables, Teacher | None, Batch], dict[str, _Answered]]:
    """(variables, teacher, batch) -> {who: (classes [B, TOP], probabilities [B, TOP], calibration bins or None)}."""
    eval_logits = steps.make_eval_logits(model, card)

    def answered(logits: jax.Array, batch: Batch) -> _Answered:
        probabilities, classes = jax.lax.top_k(jax.nn.softmax(logits), min(TOP, logits.shape[-1]))
        calibration = scoring.calibration_bins(logits, batch["label"], batch["mask"]) if "label" in batch else None
        return classes, probabilities, calibration

    def answers(variables: weights.Variables, teacher: Teacher | None, batch: Batch) -> dict[str, _Answered]:
        logits = dict(zip(("student", "teacher"), eval_logits(variables, teacher, batch), strict=True))
        return {who: answered(own, batch) for who, own in logits.items() if own is not None}

    return answers


def _names(config: Config, card: Card, data: EvalPipeline) -> list[str]:
    """Of the classes: the data's, or the network's, or their numbers."""
    return list(data.class_names or card.class_names or map(str, range(config.num_classes)))


def _pictures(data: EvalPipeline, card: Card, rows: Sequence[int]) -> dict[int, bytes]:
    """What the student sees, by row among the readable examples, as PNG."""
    pictures: dict[int, bytes] = {}
    wanted, start = sorted(set(rows)), 0
    as_seen = dataclasses.replace(card, mean=(0.0,), std=(1.0,))
    for batch in data if wanted else ():
        pixels = batch["pixels"][batch["mask"]]
        own = [row - start for row in wanted if start <= row < start + len(pixels)]
        if own:
            seen = np.asarray(for_network(to_unit(jnp.asarray(pixels[own])), as_seen))
            values = np.rint(255 * seen).clip(0, 255).astype(np.uint8)
            pictures |= {start + row: _png(image) for row, image in zip(own, values, strict=True)}
        start += len(pixels)
        if len(pictures) == len(wanted):
            break
    return pictures


def _png(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _example(
    row: int, png: bytes, label: np.ndarray | None, found: dict[str, Answers], names: Sequence[str]
) -> Example:
    tops = [
        tuple((names[c], float(p)) for c, p in zip(own.classes[row], own.probabilities[row], strict=True))
        for own in (found["student"], found["teacher"])
    ]
    return Example(png, None if label is None else names[label[row]], tops[0], tops[1])

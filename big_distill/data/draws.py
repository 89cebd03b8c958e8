"""Draws all random numbers of a training run's input, as a pure function of (seed, step).

The draws are of the *global* batch, and every process makes all of them. They do not depend on the number of devices or
processes. A resumed run goes on exactly where it stopped, because `state.step` is the whole position. Philox is
counter-based, so any step is reached at once. Its key is (seed, purpose). Its counter's top word is the step or epoch.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np

NUM_ATTEMPTS = 10
ASPECTS = (3 / 4, 4 / 3)  # width / height of an inception crop

# Purposes of the draws. Append a new one at the end: renumbering would change every run's stream.
_ORDER, _STUDENT, _TEACHER, _MIXUP, _CLASSES, _MEMBERS = range(6)
_BRANCHES = {"student": _STUDENT, "teacher": _TEACHER}


@dataclasses.dataclass(frozen=True)
class Draws:
    """Holds the random numbers of one step, or of a part of its batch.

    ids: int64 [B], examples of the training split.
    attempts: float64 [B, 10, 2], uniform in [0, 1): an inception crop's (size, aspect), attempt by attempt.
    offset: float64 [B, 2], uniform in [0, 1): position of the crop, (down, right).
    flip: bool [B], True to mirror left to right.
    lam: float32, mixup's lambda in [0.5, 1], one for the global batch.
    """

    ids: np.ndarray
    attempts: np.ndarray
    offset: np.ndarray
    flip: np.ndarray
    lam: np.float32

    def part(self, start: int, stop: int) -> Draws:
        """Returns the draws of examples `start` to `stop` of the batch, e.g. those of one process."""
        part = slice(start, stop)
        return Draws(self.ids[part], self.attempts[part], self.offset[part], self.flip[part], self.lam)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Chooses the order and the augmentations of a run.

    Every epoch is one permutation of the split, or `balanced`. Batches run on across the end of an epoch. Example `i`
    of step `s` is number `p = s * batch_size + i` of the stream and lies in epoch `p // num_examples`. The batch size
    is global.

    mixup: parameter of lambda ~ Beta(mixup, mixup), folded to max(lambda, 1 - lambda); 0 makes lambda always 1.
    balance: says how often each class is drawn; None draws each example once an epoch.
    """

    seed: int
    num_examples: int
    batch_size: int
    mixup: float
    balance: Balance | None = None

    def ids(self, step: int) -> np.ndarray:
        """Lists the examples of a step, int64 [B]."""
        position = step * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epoch, index = np.divmod(position, self.num_examples)
        ids = np.empty(self.batch_size, np.int64)
        for number in np.unique(epoch):
            here = epoch == number
            ids[here] = self._order(int(number))[index[here]]
        return ids

    def _order(self, epoch: int) -> np.ndarray:
        if self.balance is not None:
            return balanced(self.seed, self.balance, epoch)
        return permutation(self.seed, self.num_examples, epoch)

    def draws(self, step: int, branch: str = "student") -> Draws:
        """Makes all draws of a step. Steps count from 0.

        The branch 'teacher' has a second, independent crop and flip of the same examples, and the same lambda.
        """
        random = _generator(self.seed, _BRANCHES[branch], step)
        attempts = random.random((self.batch_size, NUM_ATTEMPTS, 2))
        offset = random.random((self.batch_size, 2))
        flip = random.random(self.batch_size) < 0.5
        lam = 1.0
        if self.mixup:
            lam = _generator(self.seed, _MIXUP, step).beta(self.mixup, self.mixup)
        return Draws(self.ids(step), attempts, offset, flip, np.float32(max(lam, 1 - lam)))


@dataclasses.dataclass(frozen=True, eq=False)
class Balance:
    """Says how often each class of a split is drawn. Of classes with weights w, class c gets the share w[c] / sum(w).

    members: for each class the ids of its examples, int64 [n]; no class is empty.
    weights: for each class a whole number above 0.
    """

    members: tuple[np.ndarray, ...]
    weights: tuple[int, ...]

    @classmethod
    def of(cls, labels: np.ndarray, balance: str) -> Balance:
        """Weighs the classes of `labels`, int [N], all equally ('full') or by the root of their sizes ('sqrt')."""
        order = np.argsort(labels, kind="stable")
        _, starts = np.unique(labels[order], return_index=True)
        members = tuple(np.split(order, starts[1:]))
        return cls(members, tuple(1 if balance == "full" else math.isqrt(len(ids) << 64) for ids in members))


def _generator(seed: int, purpose: int, index: int, block: int = 0) -> np.random.Generator:
    """Makes the generator of a purpose. It begins at number 4 * `block` of its stream."""
    key = np.array([seed % 2**64, purpose], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([block, 0, 0, index], np.uint64)))


@functools.lru_cache(maxsize=8)
def permutation(seed: int, num_examples: int, epoch: int) -> np.ndarray:
    """Draws the order of one epoch: int64 [num_examples], read-only.

    It sorts uniforms, because NumPy does not promise to keep the stream of `Generator.permutation` between versions.
    """
    order = np.argsort(_generator(seed, _ORDER, epoch).random(num_examples), kind="stable")
    order.setflags(write=False)
    return order


@functools.lru_cache(maxsize=8)
def balanced(seed: int, balance: Balance, epoch: int) -> np.ndarray:
    """Draws the order of one epoch by class: int64 [N] for N examples, read-only.

    Where an epoch ends, each class was drawn as often since step 0 as its share says, within one draw. These numbers
    are differences of rounded sums, so any epoch is reached at once. The classes of an epoch come in random order. Each
    goes through its own examples in one shuffled pass after another, on across the ends of epochs, so that all examples
    of a class come equally often.
    """
    num_examples = sum(map(len, balance.members))
    sums = list(itertools.accumulate(balance.weights, initial=0))  # whole numbers: no sum is rounded
    starts, stops = (np.diff([number * num_examples * s // sums[-1] for s in sums]) for number in (epoch, epoch + 1))
    classes = np.repeat(np.arange(len(starts)), stops - starts)
    classes = classes[np.argsort(_generator(seed, _CLASSES, epoch).random(num_examples), kind="stable")]
    order = np.empty(num_examples, np.int64)
    order[np.argsort(classes, kind="stable")] = np.concatenate(
        [_of_class(seed, *args) for args in zip(itertools.count(), balance.members, starts, stops, strict=False)]
    )
    order.setflags(write=False)
    return order


def _of_class(seed: int, index: int, members: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Lists the draws `start` to `stop` of a class, counted from step 0."""
    size = len(members)
    begin, end = start // size * size, -(-stop // size) * size  # whole passes
    skipped = begin % 4
    uniform = _generator(seed, _MEMBERS, index, begin // 4).random(skipped + end - begin)[skipped:]
    passes = members[np.argsort(uniform.reshape(-1, size), axis=1, kind="stable")]
    return passes.reshape(-1)[start - begin : stop - begin]


def inception_boxes(
    draws: Draws, heights: np.ndarray, widths: np.ndarray, area: tuple[float, float] = (0.05, 1.0)
) -> np.ndarray:
    """Computes random crops in whole pixels (Szegedy et al. 2015, "Going deeper with convolutions", section 6).

    This is TensorFlow's `sample_distorted_bounding_box`, which the papers' code calls. It draws an aspect uniform in
    [3/4, 4/3]. Then it draws a *height* uniform among those for which the area is allowed and the box fits, so the area
    itself is not uniform. The first attempt that fits is taken. If none fits (the image is very long and narrow), the
    largest central box of such an aspect is taken.

    Args:
      draws: draws of B examples.
      heights, widths: sizes of their images, int [B], in pixels.
      area: least and greatest share of the image's area.

    Returns:
      int64 [B, 4]: top, left, height, width.
    """
    image_height, image_width = heights[:, None].astype(np.float64), widths[:, None].astype(np.float64)
    least, most = (share * image_height * image_width for share in area)
    size = draws.attempts[..., 0]
    aspect = ASPECTS[0] + draws.attempts[..., 1] * (ASPECTS[1] - ASPECTS[0])
    widest = np.floor((image_width + 0.5 - 1e-7) / aspect)  # greatest height whose width, rounded, still fits
    high = np.minimum(np.minimum(np.rint(np.sqrt(most / aspect)), image_height), widest)
    low = np.minimum(np.rint(np.sqrt(least / aspect)), high)
    height = low + np.floor(size * (high - low + 1))
    # Rounding can move the area slightly outside its limits. One pixel more or less may bring it back.
    height += height * np.rint(height * aspect) < least
    height -= height * np.rint(height * aspect) > most
    width = np.rint(height * aspect)
    fits = (height >= 1) & (width >= 1) & (height <= image_height) & (width <= image_width)
    fits &= (height * width >= least) & (height * width <= most)

    first = np.arange(len(fits)), np.argmax(fits, axis=1)
    found = fits.any(axis=1)
    image = np.stack([heights, widths], axis=1)
    largest = np.maximum(1, np.minimum(image, np.floor(image[:, ::-1] * ASPECTS[1])))
    box = np.where(found[:, None], np.stack([height[first], width[first]], axis=1), largest)
    corner = np.where(found[:, None], np.floor(draws.offset * (image - box + 1)), (image - box) // 2)
    return np.concatenate([corner, box], axis=1).astype(np.int64)


def fitted_boxes(
    draws: Draws, heights: np.ndarray, widths: np.ndarray, area: tuple[float, float], fit: str
) -> np.ndarray:
    """Computes random crops of the square that `config.view.fit` makes of each image, in pixels of the image.

    For crop these are `inception_boxes` of the image. Else they are drawn, with the same draws, in a square of the
    longer side: `area` is a share of that square. Under squash the square is the image, stretched, so that a box is as
    wide or tall as the image is. Under pad the image is in its middle. A box then may reach beyond the image, but it is
    placed where it shows as much of the image as it can, each such place equally likely.

    Args, shapes and units are those of `inception_boxes`.
    """
    if fit == "crop":
        return inception_boxes(draws, heights, widths, area)
    image = np.stack([heights, widths], axis=1).astype(np.int64)
    side = np.maximum(image.max(axis=1), 1)
    box = inception_boxes(draws, side, side, area)[:, 2:]
    if fit == "squash":
        box = np.maximum(1, np.rint(box * image / side[:, None])).astype(np.int64)
        first, last = np.zeros_like(box), image - box
    else:
        before = (side[:, None] - image) // 2
        first = np.maximum(np.minimum(0, image - box), -before)
        last = np.minimum(np.maximum(0, image - box), side[:, None] - before - box)
    corner = first + np.floor(draws.offset * (last - first + 1)).astype(np.int64)
    return np.concatenate([corner, box], axis=1)

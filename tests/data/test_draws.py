import hashlib

import numpy as np
import pytest

from big_distill.data.draws import Balance, Draws, Stream, fitted_boxes, inception_boxes

STREAM = Stream(seed=7, num_examples=10, batch_size=4, mixup=1.0)
ARRAYS = ("ids", "attempts", "offset", "flip")


def test_golden():
    """A change of these numbers changes every run that is resumed."""
    digest = hashlib.sha256()
    for step in (0, 1, 2, 1000):
        for branch in ("student", "teacher"):
            draws = STREAM.draws(step, branch)
            for name in ARRAYS:
                digest.update(getattr(draws, name).tobytes())
            digest.update(inception_boxes(draws, np.full(4, 50), np.array([40, 50, 60, 500])).tobytes())
    assert digest.hexdigest()[:16] == "287b6ca3394d658f"
    np.testing.assert_allclose(
        [STREAM.draws(step).lam for step in (0, 1, 2)], [0.862837, 0.720877, 0.606566], atol=1e-6
    )


def test_a_step_is_a_pure_function_of_seed_and_step():
    late = STREAM.draws(5)
    for step in range(5):
        STREAM.draws(step)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(STREAM.draws(5), name), getattr(late, name))
    assert not np.array_equal(Stream(8, 10, 4, 1.0).draws(5).attempts, late.attempts)
    assert not np.array_equal(STREAM.draws(6).attempts, late.attempts)


@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_parts_make_up_the_global_batch(num_parts):
    draws = STREAM.draws(3)
    size = 4 // num_parts
    parts = [draws.part(i * size, (i + 1) * size) for i in range(num_parts)]
    for name in ARRAYS:
        np.testing.assert_array_equal(np.concatenate([getattr(p, name) for p in parts]), getattr(draws, name))
    assert all(p.lam == draws.lam for p in parts)


@pytest.mark.parametrize("batch_size", [4, 10, 33])
def test_every_epoch_holds_each_example_once(batch_size):
    stream = Stream(0, 10, batch_size, 0.0)
    ids = np.concatenate([stream.ids(step) for step in range(40)])
    epochs = ids[: len(ids) // 10 * 10].reshape(-1, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


SIZES = np.array([2, 60, 7, 30, 1])
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 3, 4, 7, 9], SIZES))  # class numbers may have gaps
SHARES = {"full": np.full(5, 1 / 5), "sqrt": np.sqrt(SIZES) / np.sqrt(SIZES).sum()}


def balanced_stream(balance, seed=0, batch_size=32):
    return Stream(seed, len(LABELS), batch_size, 0.0, Balance.of(LABELS, balance))


@pytest.mark.parametrize("balance", SHARES)
def test_classes_come_as_often_as_their_shares_say(balance):
    ids = np.concatenate([balanced_stream(balance).ids(step) for step in range(100)])
    for epoch in range(1, 32):
        counts = [(LABELS[ids[: 100 * epoch]] == label).sum() for label in np.unique(LABELS)]
        assert np.abs(counts - 100 * epoch * SHARES[balance]).max() < 1


@pytest.mark.parametrize("balance", SHARES)
def test_a_class_shows_all_its_images_equally_often_in_an_order_of_chance(balance):
    ids = np.concatenate([balanced_stream(balance).ids(step) for step in range(50)])
    for stop in (7, 100, 333, 1600):
        counts = np.bincount(ids[:stop], minlength=100)
        assert all(np.ptp(counts[label == LABELS]) <= 1 for label in np.unique(LABELS))
    of_one = ids[LABELS[ids] == 7].reshape(-1)
    passes = of_one[: len(of_one) // 30 * 30].reshape(-1, 30)
    assert len({tuple(order) for order in passes}) == len(passes) > 5
    classes = LABELS[ids[:1600]].reshape(-1, 100)
    assert len({tuple(order) for order in classes}) == len(classes)  # classes are not in the same places


def test_a_balanced_step_is_a_pure_function_of_seed_and_step():
    steps = [balanced_stream("sqrt").ids(step) for step in range(40)]
    for step in (39, 17, 3):  # each from a stream that made no other step
        np.testing.assert_array_equal(balanced_stream("sqrt").ids(step), steps[step])
    np.testing.assert_array_equal(balanced_stream("sqrt", batch_size=64).ids(5), np.concatenate(steps[10:12]))
    assert not np.array_equal(balanced_stream("sqrt", seed=1).ids(3), steps[3])
    digest = hashlib.sha256(np.concatenate([*steps, balanced_stream("full").ids(10**9)]).tobytes())
    assert digest.hexdigest()[:16] == "c57c064108541303"  # a change of this changes every balanced run that is resumed


def test_the_order_depends_on_the_seed():
    assert not np.array_equal(Stream(0, 1000, 1000, 0.0).ids(0), Stream(1, 1000, 1000, 0.0).ids(0))
    assert len(Stream(-1, 10, 4, 0.0).ids(0)) == 4


def test_the_teacher_branch_has_its_own_crop_and_flip():
    student, teacher = STREAM.draws(2), STREAM.draws(2, "teacher")
    np.testing.assert_array_equal(student.ids, teacher.ids)
    assert student.lam == teacher.lam
    assert not (student.attempts == teacher.attempts).any()
    assert not (student.offset == teacher.offset).any()


def test_lambda_is_folded_and_of_its_beta_distribution():
    lam = np.array([Stream(0, 10, 1, 1.0).draws(step).lam for step in range(2000)])
    assert lam.dtype == np.float32
    assert lam.min() >= 0.5 and lam.max() <= 1
    assert lam.mean() == pytest.approx(0.75, abs=0.01)  # max(u, 1 - u) of a uniform u
    narrow = np.array([Stream(0, 10, 1, 0.1).draws(step).lam for step in range(2000)])
    assert narrow.mean() > 0.9
    assert Stream(0, 10, 1, 0.0).draws(0).lam == 1


def test_flips_are_even():
    assert Stream(0, 10, 10_000, 0.0).draws(0).flip.mean() == pytest.approx(0.5, abs=0.02)


def boxes_of(height, width, count=20_000, area=(0.05, 1.0)):
    draws = Stream(0, count, count, 0.0).draws(0)
    return inception_boxes(draws, np.full(count, height), np.full(count, width), area)


@pytest.mark.parametrize("size", [(100, 150), (150, 100), (28, 28), (8, 8), (501, 333)])
def test_boxes_lie_inside_with_the_area_and_aspect_asked_for(size):
    top, left, height, width = boxes_of(*size, area=(0.2, 0.9)).T
    assert top.min() >= 0 and left.min() >= 0 and height.min() >= 1 and width.min() >= 1
    assert (top + height).max() <= size[0] and (left + width).max() <= size[1]
    share = height * width / (size[0] * size[1])
    assert share.min() >= 0.2 and share.max() <= 0.9
    assert ((width + 0.5) / height >= 3 / 4).all() and ((width - 0.5) / height <= 4 / 3).all()
    assert ((top == 0) & (left == 0)).any() and ((top + height == size[0]) & (left + width == size[1])).any()


@pytest.mark.parametrize("size", [(100, 150), (40, 10), (7, 300), (1, 1)])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_fitted_boxes_are_crops_of_the_square(fit, size):
    count, side, image = 20_000, max(size), np.array(size)
    draws = Stream(0, count, count, 0.0).draws(0)
    corner, box = np.split(fitted_boxes(draws, *np.full((2, count), image[:, None]), (0.05, 1.0), fit), 2, axis=1)
    square = boxes_of(side, side)[:, 2:]
    if fit == "squash":  # in the square, which is the image stretched, it has the drawn size to half a pixel
        assert (np.abs(box - square * image / side) <= np.maximum(0.5, 1 - square * image / side)).all()
        assert corner.min() >= 0 and (corner + box <= image).all()
    else:
        assert (box == square).all()
        before = (side - image) // 2
        assert (corner >= -before).all() and (corner + box <= side - before).all()
        seen = np.minimum(corner + box, image) - np.maximum(corner, 0)
        assert (seen == np.minimum(box, image)).all(), "as much of the image as there can be"
    inside = (box < image).all(1)
    if inside.any():  # and each place is as likely as another
        place = corner[inside] / (image - box[inside])
        assert place.min() == 0 and place.max() == 1 and place.mean(0) == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
def test_all_fits_of_a_square_image_are_one(fit):
    draws, size = Stream(0, 100, 100, 0.0).draws(0), np.full(100, 57)
    np.testing.assert_array_equal(fitted_boxes(draws, size, size, (0.05, 1.0), fit), boxes_of(57, 57, 100))


def test_boxes_are_distributed_as_tensorflows():
    """30,000 draws of `tf.image.sample_distorted_bounding_box` (TensorFlow 2) for 100 x 150 px gave these numbers."""
    _, _, height, width = boxes_of(100, 150).T
    assert height.mean() == pytest.approx(63.5, abs=0.4)
    assert (height * width / 15_000).mean() == pytest.approx(0.3105, abs=0.004)


def test_the_first_attempt_that_fits_wins():
    attempts = np.full((1, 10, 2), 0.5)
    attempts[0, 0] = 0.9, 0.0  # too narrow for area >= 0.9 of a 40 x 40 image
    attempts[0, 2] = 0.0, 0.0
    draws = Draws(np.zeros(1, np.int64), attempts, np.zeros((1, 2)), np.zeros(1, bool), np.float32(1))
    size = np.array([40])
    aspect = 3 / 4 + 0.5 * (4 / 3 - 3 / 4)
    (box,) = inception_boxes(draws, size, size, (0.9, 1.0))
    assert box[2] * box[3] >= 0.9 * 1600
    assert box[3] / box[2] == pytest.approx(aspect, abs=0.03)


@pytest.mark.parametrize(("size", "area", "attempt", "side"), [(28, (0.05, 1), 0.0, 7), (10, (0.05, 0.57), 0.99, 7)])
def test_an_area_just_outside_for_rounding_is_mended(size, area, attempt, side):
    """6 x 6 of 28 x 28 px is less than 5 %, and 8 x 8 of 10 x 10 px is more than 57 %."""
    attempts = np.full((1, 10, 2), 3 / 7)  # an aspect of 1
    attempts[..., 0] = attempt
    draws = Draws(np.zeros(1, np.int64), attempts, np.zeros((1, 2)), np.zeros(1, bool), np.float32(1))
    assert inception_boxes(draws, np.array([size]), np.array([size]), area).tolist() == [[0, 0, side, side]]


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    [
        ((1, 100), (0.05, 1.0), (0, 49, 1, 1)),
        ((100, 1), (0.05, 1.0), (49, 0, 1, 1)),
        ((10, 100), (0.5, 1.0), (0, 43, 10, 13)),
        ((30, 30), (1.0, 1.0), (0, 0, 30, 30)),
        ((1, 1), (0.05, 1.0), (0, 0, 1, 1)),
    ],
)
def test_without_a_fit_the_largest_central_box_is_taken(size, area, expected):
    assert {tuple(box) for box in boxes_of(*size, count=50, area=area)} == {expected}

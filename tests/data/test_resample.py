import numpy as np
import pytest
from PIL import Image
from test_decode import encoded, random_images, waves

from big_distill.data import jpeg, resample
from big_distill.data.decode import Decoded, decode_part
from big_distill.data.jpeg import Box, Part
from big_distill.data.resample import Ragged, central_view, crop_resize, pack_groups


def reference_resize(image, height, width):
    """Resizes by the definition, bilinear in float64, pixel by pixel: half-pixel centres, edges repeated."""
    result = np.zeros((height, width, image.shape[2]))
    for i in range(height):
        for j in range(width):
            y, x = (i + 0.5) * image.shape[0] / height - 0.5, (j + 0.5) * image.shape[1] / width - 0.5
            for row, wy in ((int(np.floor(y)), 1 - y % 1), (int(np.floor(y)) + 1, y % 1)):
                for col, wx in ((int(np.floor(x)), 1 - x % 1), (int(np.floor(x)) + 1, x % 1)):
                    row, col = np.clip(row, 0, image.shape[0] - 1), np.clip(col, 0, image.shape[1] - 1)
                    result[i, j] += wy * wx * image[row, col]
    return result


def assert_rounded(views, reference):
    assert views.dtype == np.uint8
    assert np.abs(views - reference).max() <= 0.5 + 1e-4  # float32 may round a half either way


TF_VALUES = {
    3: [[0, 10, 50], [100, 20, 152.5], [200, 30, 255]],
    4: [
        [0, 6.25, 25, 50],
        [50, 28.125, 47.34375, 101.25],
        [150, 71.875, 92.03125, 203.75],
        [200, 93.75, 114.375, 255],
    ],
}


@pytest.fixture(params=["together", "one by one"])
def way(request, monkeypatch):
    """Chooses one of the two ways to resample."""
    monkeypatch.setattr(resample, "_SINGLE_VALUES", 0 if request.param == "one by one" else 1 << 30)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [1, 9, 33])
def test_crop_resize_against_the_definition(channels, size):
    images = random_images(channels)
    random = np.random.default_rng(1)
    ids = np.concatenate([np.arange(len(images)), random.integers(0, len(images), 6)])
    boxes = []
    for i in ids:
        height, width = (random.integers(1, n + 1) for n in images[i].shape[:2])
        top, left = (random.integers(0, n - m + 1) for n, m in zip(images[i].shape, (height, width), strict=False))
        boxes.append((top, left, height, width))
    flip = random.random(len(ids)) < 0.5
    views = crop_resize(Ragged.pack(images), ids, np.array(boxes), size, flip)
    for view, i, (top, left, height, width), mirrored in zip(views, ids, boxes, flip, strict=True):
        expected = reference_resize(images[i][top : top + height, left : left + width], size, size)
        assert_rounded(view, expected[:, ::-1] if mirrored else expected)


def test_crop_resize_gives_tensorflows_numbers():
    """The numbers come from `tf.image.resize(image, (4, 4))` and `(3, 3)`, TensorFlow 2."""
    image = np.array([[0, 10, 50], [200, 30, 255]], np.uint8)[..., None]
    for size, expected in TF_VALUES.items():
        (view,) = crop_resize(Ragged.pack([image]), np.array([0]), np.array([[0, 0, 2, 3]]), size)
        np.testing.assert_array_equal(view[..., 0], np.floor(np.array(expected) + 0.5))


def test_one_image_at_a_time_gives_the_same(monkeypatch):
    images = random_images(3)
    ids = np.array([5, 1, 1, 4, 0, 2, 3])
    boxes = np.array([[0, 0, *images[i].shape[:2]] for i in ids])
    together = crop_resize(Ragged.pack(images), ids, boxes, 16)
    for view, i, box in zip(together, ids, boxes, strict=True):
        alone = crop_resize(Ragged.pack([images[i]]), np.array([0]), box[None], 16)
        np.testing.assert_array_equal(alone[0], view)
    for limit in ("_CHUNK_VALUES", "_SINGLE_VALUES"):
        monkeypatch.setattr(resample, limit, 1)
        np.testing.assert_array_equal(crop_resize(Ragged.pack(images), ids, boxes, 16), together)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("resize", "size"), [(16, 16), (20, 13), (9, 4)])
def test_central_view_is_a_resize_then_a_central_crop(resize, size):
    images = random_images(3)
    views = central_view(Ragged.pack(images), np.arange(len(images)), resize, size)
    for view, image in zip(views, images, strict=True):
        shorter = min(image.shape[:2])
        height, width = (round(n * resize / shorter) for n in image.shape[:2])
        top, left = (height - size) // 2, (width - size) // 2
        assert_rounded(view, reference_resize(image, height, width)[top : top + size, left : left + size])


def on_grey(image, height, width):
    """Puts an image in the middle of another, grey one, or cuts its middle; an odd row or column is at the end."""
    canvas = np.full((height, width, image.shape[2]), 128.0)
    cuts, places = [], []
    for there, wanted in zip(image.shape, (height, width), strict=False):
        shared, offset = min(there, wanted), abs(there - wanted) // 2
        cuts.append(slice(offset, offset + shared) if there > wanted else slice(shared))
        places.append(slice(offset, offset + shared) if there < wanted else slice(shared))
    canvas[tuple(places)] = image[tuple(cuts)]
    return canvas


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("resize", "size"), [(16, 16), (20, 13), (9, 4)])
@pytest.mark.parametrize("fit", ["squash", "pad"])
def test_a_central_view_shows_all_of_an_image(fit, resize, size):
    images = [*random_images(3), np.full((2, 90, 3), 7, np.uint8)]
    views = central_view(Ragged.pack(images), np.arange(len(images)), resize, size, fit)
    for view, image in zip(views, images, strict=True):
        longer = max(image.shape[:2])
        height, width = (resize if fit == "squash" else max(1, round(n * resize / longer)) for n in image.shape[:2])
        assert_rounded(view, on_grey(reference_resize(image, height, width), size, size))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("channels", [1, 3])
def test_a_box_that_reaches_beyond_its_image_is_grey_there(channels):
    """Nothing but the image and grey is there, and neither runs into the other."""
    image = np.full((6, 9, channels), 7, np.uint8)
    box, size = (-3, 2, 12, 12), 24  # the rows 0 to 5 of the image, and its columns 2 to 8, at two pixels a pixel
    expected = np.full((size, size, channels), 128, np.uint8)
    expected[6:18, :14] = 7
    for flip in (False, True):
        (view,) = crop_resize(Ragged.pack([image]), np.array([0]), np.array([box]), size, np.array([flip]))
        np.testing.assert_array_equal(view, expected[:, ::-1] if flip else expected)


def test_a_view_of_an_images_own_size_is_the_image():
    images = random_images(3, [(12, 12), (12, 12)])
    packed, ids = Ragged.pack(images), np.array([1, 0])
    np.testing.assert_array_equal(central_view(packed, ids, 12, 12), [images[1], images[0]])
    np.testing.assert_array_equal(crop_resize(packed, ids, np.array([[0, 0, 12, 12]] * 2), 12), [images[1], images[0]])


def test_nothing_outside_of_the_box_enters():
    image = np.full((10, 10, 1), 255, np.uint8)
    image[2:5, 3:7] = 7
    assert (crop_resize(Ragged.pack([image]), np.array([0]), np.array([[2, 3, 3, 4]]), 20) == 7).all()


def test_groups_hold_all_images_in_order(monkeypatch):
    images = random_images(1, [(4, 4)] * 7)
    monkeypatch.setattr(resample, "_GROUP_BYTES", 40)
    groups = list(pack_groups((Decoded(image, 4, 4, 1), number) for number, image in enumerate(images)))
    assert [numbers for _, numbers in groups] == [[0, 1, 2], [3, 4, 5], [6]]
    np.testing.assert_array_equal(np.concatenate([packed.pixels for packed, _ in groups]).reshape(7, 4, 4, 1), images)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("reduction", jpeg.REDUCTIONS)
def test_a_view_of_a_part_is_that_of_the_whole(reduction):
    data = [encoded(Image.fromarray(waves(*size)), "JPEG") for size in ((90, 120), (67, 201))]
    ids, boxes, flip = np.array([1, 0, 1]), np.array([[8, 9, 51, 60], [21, 33, 60, 50], [0, 1, 67, 200]]), np.eye(3)[0]
    whole = Ragged.pack([decode_part(d, 3, lambda *size: Part(reduction=reduction)) for d in data])
    parts = [
        decode_part(data[i], 3, lambda *size, b=b: Part(Box(*b), reduction))
        for i, b in zip(ids, boxes.tolist(), strict=True)
    ]
    packed = Ragged.pack(parts)
    assert len(packed.pixels) < sum(whole.boxes[i, 2] * whole.boxes[i, 3] for i in ids)
    views = crop_resize(packed, np.arange(3), boxes, 16, flip.astype(bool))
    np.testing.assert_array_equal(views, crop_resize(whole, ids, boxes, 16, flip.astype(bool)))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("reduction", jpeg.REDUCTIONS)
def test_a_crop_of_a_reduced_image_is_where_the_crop_of_the_whole_is(reduction):
    """The picture shows its own coordinates: a block holds its centre, and bilinear interpolation returns them."""
    height, width, size = 203, 180, 9
    rows, columns = -(-height // reduction), -(-width // reduction)
    y, x = ((np.arange(n) + 0.5) * reduction for n in (rows, columns))
    pixels = np.stack(np.broadcast_arrays(y[:, None], x[None]), -1).astype(np.uint8)  # whole or half: no rounding up
    half = 0.5 * (reduction == 1)
    images = Ragged.pack([Decoded(pixels, height, width, reduction)])
    box = np.array([[21, 13, 150, 131]])
    (view,) = crop_resize(images, np.array([0]), box, size)
    (flipped,) = crop_resize(images, np.array([0]), box, size, np.array([True]))
    np.testing.assert_array_equal(flipped, view[:, ::-1])
    for axis, (start, length) in enumerate(((21, 150), (13, 131))):
        centres = start + (np.arange(size) + 0.5) * length / size
        got = np.take(view[..., axis], 0, axis=1 - axis)
        assert np.abs(got + half - centres).max() <= 0.5 + 1e-4


def test_nothing_outside_of_the_box_enters_a_reduced_view():
    image = np.full((64, 64, 1), 255, np.uint8)
    image[9:51, 13:60] = 7
    for reduction in jpeg.REDUCTIONS:
        blocks = image.reshape(64 // reduction, reduction, 64 // reduction, reduction).max((1, 3))[..., None]
        images = Ragged.pack([Decoded(blocks, 64, 64, reduction)])
        assert (crop_resize(images, np.array([0]), np.array([[9, 13, 42, 47]]), 20) == 7).all()

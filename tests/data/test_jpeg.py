"""Checks the decoding of parts of JPEGs, with the extra `jpeg` and without it."""

import io
import logging
import subprocess
import sys
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from big_distill.data import jpeg
from big_distill.data.decode import BadImage, decode_part
from big_distill.data.jpeg import Box, Part


def picture(height, width, seed=0):
    """Makes noise at two scales; its colours change from pixel to pixel, so that upsampling of chroma shows."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(smooth // 2 + random.integers(0, 128, (height, width, 3), np.uint8))


def encoded(image, format_="JPEG", **options):
    file = io.BytesIO()
    image.save(file, format_, **{"quality": 85, **options})
    return file.getvalue()


def decode(data, channels, part, known_size=None):
    """Decodes as a reader does: without a known size when the file first comes, with it later."""
    return decode_part(data, channels, lambda height, width: part, known_size).pixels


def boxes(height, width, count=40):
    """Generates random boxes (half of them begin and end at the borders of blocks), two corners and the whole."""
    random = np.random.default_rng(0)
    for i in range(count):
        top, left = random.integers(0, (height, width)).tolist()
        bottom, right = random.integers((top + 1, left + 1), (height + 1, width + 1)).tolist()
        if i % 2:
            top, left = top // 16 * 16, left // 16 * 16
            bottom, right = min(height, -(-bottom // 16) * 16), min(width, -(-right // 16) * 16)
        yield Box(top, left, bottom - top, right - left)
    yield from (Box(0, 0, 1, 1), Box(height - 1, width - 1, 1, 1), Box(0, 0, height, width))


ENCODINGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"subsampling": 2, "progressive": True},
    "restarts": {"subsampling": 2, "restart_marker_blocks": 3},
    "RGB": {"keep_rgb": True},
    "grey": {},
}


@pytest.mark.parametrize(("encoding", "channels"), [*((name, 3) for name in ENCODINGS), ("grey", 1)])
def test_a_part_is_the_crop_of_the_whole(encoding, channels, parts):
    image = picture(93, 141)
    data = encoded(image.convert("L") if encoding == "grey" else image, **ENCODINGS[encoding])
    whole = jpeg.decode(data, channels, 93, 141, Part())
    pillows = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., :channels]
    np.testing.assert_array_equal(whole, pillows)
    for known_size in (None, (93, 141)):
        assert not parts  # none before the file is known to be intact
        for box in boxes(93, 141):
            part = decode(data, channels, Part(box), known_size)
            expected = whole[box.top : box.top + box.height, box.left : box.left + box.width]
            np.testing.assert_array_equal(part, expected, err_msg=str(box))
    assert parts is None or len(parts) == sum(box.width > 1 for box in boxes(93, 141)) > 35


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("width", [141, 146])
def test_boxes_of_few_pixels_are_the_crops_of_the_whole(width):
    """Whole and part agree also where upsampled chroma has no neighbour; there the two decoders could differ."""
    data = encoded(picture(93, width), subsampling=2)
    whole = decode(data, 3, Part())
    for box_width in (1, 2, 3):
        for left in (0, 1, 15, 16, 17, width - 1 - box_width, width - box_width):
            for box in (Box(3, left, 20, box_width), Box(16, left, 1, box_width)):
                part = decode(data, 3, Part(box), (93, width))
                expected = whole[box.top : box.top + box.height, left : left + box_width]
                np.testing.assert_array_equal(part, expected, err_msg=str(box))


def test_large_images_keep_no_memory(monkeypatch):
    monkeypatch.setattr(jpeg, "_SCRATCH_BYTES", 93 * 141 * 3 - 1)
    monkeypatch.setattr(jpeg, "_scratch", jpeg._Scratch())
    small, large = (jpeg.decode(encoded(picture(h, 141)), 3, h, 141, Part(Box(9, 8, 20, 30))) for h in (92, 93))
    assert small.shape == large.shape == (20, 30, 3)
    assert len(jpeg._scratch.room(0)) == 92 * 141 * 3


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("reduction", jpeg.REDUCTIONS)
def test_a_part_of_a_reduced_image_is_its_blocks_within_the_box(reduction):
    data, box = encoded(picture(93, 141)), Box(11, 21, 70, 90)
    whole = decode(data, 3, Part(reduction=reduction), (93, 141))
    part = decode(data, 3, Part(box, reduction), (93, 141))
    rows, columns = (
        [i for i in range(n) if start <= i * reduction and (i + 1) * reduction <= start + length]
        for n, start, length in ((93, 11, 70), (141, 21, 90))
    )
    np.testing.assert_array_equal(part, whole[rows][:, columns])


def test_a_fault_is_found_wherever_the_box_is(parts):
    data = encoded(picture(160, 120))
    damaged, above, below = data[: len(data) * 2 // 3], Box(10, 10, 20, 30), Box(130, 10, 20, 30)
    expected = decode(data, 3, Part(above))
    for box, known_size in ((above, None), (below, None), (below, (160, 120))):
        with pytest.raises(BadImage, match="truncated"):
            decode(damaged, 3, Part(box), known_size)
    assert not parts
    if parts is not None:  # nothing is read below the box of an intact file
        np.testing.assert_array_equal(decode(damaged, 3, Part(above), (160, 120)), expected)
        assert len(parts) == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"no JPEG", encoded(picture(20, 30)), encoded(picture(40, 50))[:200], encoded(picture(40, 50), "PNG")],
    ids=["nothing", "text", "smaller", "truncated", "PNG"],
)
def test_data_that_are_not_what_they_were_are_none(data, parts):
    part = Part(Box(25, 30, 10, 15))
    assert jpeg.decode(data, 3, 40, 50, part) is None
    assert jpeg.can_be_alone(part) == (parts is not None)
    assert parts is None or jpeg.decode_alone(data, 3, part) is None


@pytest.mark.parametrize("intact", [False, True])
def test_threads_do_not_mix_their_images(intact, parts):
    images = [(encoded(picture(h, w, i)), h, w) for i, (h, w) in enumerate([(80, 60), (50, 90), (120, 121), (33, 47)])]
    box = Box(9, 8, 23, 31)

    def part_of(i):
        data, height, width = images[i % 4]
        return decode(data, 3, Part(box), (height, width) if intact else None)

    alone = [part_of(i) for i in range(4)]
    with futures.ThreadPoolExecutor(4) as pool:
        for i, part in enumerate(pool.map(part_of, range(200))):
            np.testing.assert_array_equal(part, alone[i % 4])
    assert parts is None or len(parts) == 204 * intact


def test_the_extra_is_quiet():
    """NVIDIA's package reports missing GPU libraries and faults on stderr; these are hidden, and stderr works again."""
    pytest.importorskip("nvidia.nvimgcodec")
    code = (
        "import sys; from big_distill.data import jpeg_parts; print('still here', file=sys.stderr); "
        "print(jpeg_parts.decode_box(b'\\xff\\xd8\\xff and no more', 3, 0, 0, 9, 9))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("None\n", "still here\n")


def test_the_extra_works_when_the_standard_error_is_closed():
    pytest.importorskip("nvidia.nvimgcodec")
    code = "from big_distill.data import jpeg; print(jpeg.part_decoder())"
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.startswith("<function decode_box")


@pytest.fixture
def anew(monkeypatch):
    """Makes the code look for the extra again, in the test and after it."""
    monkeypatch.delitem(sys.modules, "big_distill.data.jpeg_parts", raising=False)
    monkeypatch.delattr("big_distill.data.jpeg_parts", raising=False)
    jpeg.part_decoder.cache_clear()
    yield monkeypatch
    jpeg.part_decoder.cache_clear()


def test_another_version_with_other_pixels_is_not_used(anew, caplog):
    pytest.importorskip("nvidia.nvimgcodec")
    assert jpeg.part_decoder() is not None and not caplog.messages
    from big_distill.data import jpeg_parts

    decode_box = jpeg_parts.decode_box
    for other in (lambda *args: decode_box(*args) ^ 1, lambda *args: None):
        jpeg.part_decoder.cache_clear()
        caplog.clear()
        anew.setattr(jpeg_parts, "decode_box", other)
        with caplog.at_level(logging.WARNING):
            assert jpeg.part_decoder() is None and jpeg.part_decoder() is None
        (message,) = caplog.messages
        assert "different pixels" in message


@pytest.mark.parametrize(
    ("error", "warning"),
    [
        (ModuleNotFoundError("no such", name="nvidia"), None),
        (ModuleNotFoundError("no such", name="nvidia.nvimgcodec"), None),
        (ModuleNotFoundError("no such", name="numpy.gone"), "lacks the module numpy.gone"),
        (ImportError("libcudart.so: cannot open"), "does not work: ImportError: libcudart.so"),
    ],
)
def test_a_broken_installation_is_told_of_once_and_a_missing_one_is_not(error, warning, anew, caplog):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "big_distill.data.jpeg_parts":
                raise error

    anew.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with caplog.at_level(logging.WARNING):
        assert jpeg.part_decoder() is None and jpeg.part_decoder() is None
    assert len(caplog.messages) == (warning is not None)
    assert warning is None or warning in caplog.text


def test_nothing_is_said_where_other_packages_of_nvidia_are(anew, caplog, tmp_path):
    (tmp_path / "nvidia").mkdir()
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        anew.delitem(sys.modules, name)
    anew.setattr(sys, "path", [str(tmp_path), *(path for path in sys.path if "site-packages" not in path)])
    with caplog.at_level(logging.WARNING):
        assert jpeg.part_decoder() is None
    assert not caplog.messages


def test_the_smallest_box_of_all():
    assert jpeg.union([Box(3, 9, 4, 2), Box(5, 1, 1, 3)]) == Box(3, 1, 4, 10)
    assert jpeg.union([Box(3, 9, 4, 2)]) == Box(3, 9, 4, 2)


def test_the_largest_reduction_never_enlarges():
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        size = int(random.integers(1, 30))
        box = random.integers(0, 50, 4) * (1, 1, 0, 0) + random.integers(size, 300, 4) * (0, 0, 1, 1)
        reduction = jpeg.largest_reduction(Box(*box.tolist()), size)
        blocks = {
            r: min(
                sum(start <= block * r and (block + 1) * r <= start + length for block in range(400))
                for start, length in zip(box[:2], box[2:], strict=True)
            )
            for r in jpeg.REDUCTIONS
        }
        assert reduction == max([r for r in blocks if blocks[r] >= size], default=1)
        seen.add(reduction)
    assert seen == set(jpeg.REDUCTIONS)

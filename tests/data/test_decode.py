import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from big_distill.config import BIT_DEPTHS
from big_distill.data import jpeg
from big_distill.data.decode import BadImage, decode, decode_part, largest_value, size_of
from big_distill.data.jpeg import Box, Part

SIZES = [(7, 5), (40, 31), (3, 90), (1, 1), (64, 64), (200, 133)]


def random_images(channels, sizes=SIZES):
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, channels), np.uint8) for size in sizes]


def encoded(image, format_="PNG", **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


COLOUR = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_colour_and_grey():
    data = encoded(Image.fromarray(COLOUR))
    np.testing.assert_array_equal(decode(data, 3), COLOUR)
    np.testing.assert_allclose(decode(data, 1)[..., 0], COLOUR @ [0.299, 0.587, 0.114], atol=0.51)
    grey = encoded(Image.fromarray(COLOUR[..., 0]))
    np.testing.assert_array_equal(decode(grey, 1), COLOUR[..., :1])
    np.testing.assert_array_equal(decode(grey, 3), np.repeat(COLOUR[..., :1], 3, axis=2))


def test_cmyk_jpeg():
    image = decode(encoded(Image.new("CMYK", (16, 8), (0, 255, 255, 0)), "JPEG", quality=100), 3)
    assert image.shape == (8, 16, 3)
    np.testing.assert_allclose(image, np.broadcast_to([255, 0, 0], image.shape), atol=4)


def test_transparent_pixels_are_over_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette), 3).tolist() == [[[10, 20, 30], [200, 0, 0]]]
    assert decode(encoded(palette, transparency=1), 3).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert decode(encoded(palette, transparency=bytes([0, 255])), 3).tolist() == [[[255, 255, 255], [200, 0, 0]]]
    half = Image.fromarray(np.array([[[0, 0, 0, 128], [9, 9, 9, 0], [9, 9, 9, 255]]], np.uint8))
    assert decode(encoded(half), 1)[0, :, 0].tolist() == [127, 255, 9]
    assert decode(encoded(half.convert("LA")), 3)[0, :, 0].tolist() == [127, 255, 9]
    assert decode(np.asarray(half), 1)[0, :, 0].tolist() == [127, 255, 9]


def test_sixteen_bits_and_one():
    wide = Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16))
    assert decode(encoded(wide), 1)[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decode(encoded(wide, "TIFF"), 3)[0, :, 2].tolist() == [0, 1, 128, 255]
    assert decode(encoded(Image.fromarray(np.array([[True, False]]))), 1)[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("bits", BIT_DEPTHS)
def test_values_of_fewer_bits_than_the_file_has(bits):
    white = 2**bits - 1
    values = np.unique(np.linspace(0, white, 300).astype(np.uint16))[None]
    expected = np.floor(255 * values.astype(np.float64) / white + 0.5)
    for format_ in ("PNG", "TIFF"):
        pixels = decode(encoded(Image.fromarray(values), format_), 1, bits)
        np.testing.assert_array_equal(pixels[..., 0], expected)
    if bits < 16:
        with pytest.raises(
            BadImage, match=f"values from 1 to {white + 1}, but config.source.bit_depth={bits} has 0 to {white}"
        ):
            decode(encoded(Image.fromarray(values + 1)), 1, bits)
        assert decode(encoded(Image.fromarray(COLOUR)), 3, bits).tolist() == COLOUR.tolist()  # 8 bits are 8 bits


def deep_colour(value, alpha=None):
    """Makes a PNG of 2 x 1 pixels of three or four channels of 16 bits, which Pillow cannot write."""
    pixel = [value] * 3 + ([] if alpha is None else [alpha])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2 if alpha is None else 6, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{2 * len(pixel)}H", *pixel * 2)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_deep_colour_is_read_at_16_bits_and_refused_at_fewer():
    assert decode(deep_colour(0x8040), 3).tolist() == [[[0x80] * 3] * 2]
    with pytest.raises(
        BadImage, match=r"of 16 bits a channel, of which config.source.bit_depth=12 are used, cannot be"
    ):
        decode(deep_colour(4095), 3, 12)
    assert largest_value(deep_colour(4095)) == 15 * 257


def test_the_largest_value_is_that_of_colours_whatever_stands_beside_them():
    values = np.array([[7, 4000]], np.uint16)
    grey = encoded(Image.fromarray(values))
    assert largest_value(grey) == largest_value(encoded(Image.fromarray(values), "TIFF")) == 4000
    at = grey.index(b"IDAT") - 4
    assert (
        largest_value(grey[:at] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 1_300_000) + grey[at:]) == 4000
    )
    assert largest_value(deep_colour(15 << 8, alpha=0xFFFF)) == 15 * 257


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.array([[-5, 300]], np.int32)), "values from -5 to 300, but .*bit_depth=16 has 0 to 65535"),
        (Image.fromarray(np.array([[0, 1 << 20]], np.int32)), "values from 0 to 1048576, but"),
    ],
)
def test_values_that_are_no_greys_are_refused(image, message):
    with pytest.raises(BadImage, match=message):
        decode(encoded(image, "TIFF"), 1)


def test_a_deep_tiff_whose_white_is_zero_is_refused():
    data = encoded(Image.fromarray(np.array([[0, 60000]], np.uint16)), "TIFF", tiffinfo={262: 0})
    with pytest.raises(BadImage, match="whose least value is white"):
        decode(data, 1)


def test_a_damaged_segment_beside_the_pixels_of_a_jpeg_costs_nothing():
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    data = encoded(image, "JPEG")
    photoshop = b"Photoshop 3.0\x008BIM\x04\x04"  # it ends where a name should begin
    broken = data[:2] + b"\xff\xed" + struct.pack(">H", 2 + len(photoshop)) + photoshop + data[2:]
    with pytest.raises(Exception, match=r".+"):
        Image.open(io.BytesIO(broken)).load()
    np.testing.assert_array_equal(decode(broken, 3), decode(data, 3))


def test_a_tiff_that_pillow_does_not_read_is_called_one():
    data = io.BytesIO()
    Image.fromarray(COLOUR).save(data, "TIFF")
    data = bytearray(data.getvalue())
    entries = int.from_bytes(data[4:8], "little")
    for at in range(entries + 2, entries + 2 + 12 * int.from_bytes(data[entries : entries + 2], "little"), 12):
        if int.from_bytes(data[at : at + 2], "little") == 277:  # samples per pixel
            data[at + 8] = 5
    with pytest.raises(BadImage, match="a TIFF with channels or values that Pillow does not read: convert it"):
        decode(bytes(data), 3)


@pytest.mark.parametrize("format_", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(format_):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    image = np.zeros((16, 32, 3), np.uint8)
    image[:8, :16] = 255
    expected = np.rot90(image, -1)
    np.testing.assert_allclose(decode(encoded(Image.fromarray(image), format_, exif=exif), 3), expected, atol=8)


def chunk(name, contents):
    """Makes a chunk of a PNG."""
    return struct.pack(">I", len(contents)) + name + contents + struct.pack(">I", zlib.crc32(name + contents))


LARGE = zlib.compress(bytes(2 << 20))


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize(
    "beside",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LARGE),
        chunk(b"zTXt", b"parameters\0\0" + LARGE),
        chunk(b"iCCP", b"profile\0\0" + LARGE),
        chunk(b"zTXt", b"parameters\0\0no zlib"),
        chunk(b"eXIf", b"II*\0\xff"),
    ],
    ids=["xmp", "text", "profile", "damaged", "exif"],
)
def test_a_fault_beside_the_pixels_of_a_png_costs_nothing(beside, where):
    data = encoded(Image.fromarray(COLOUR))
    end = 33 if where == "before" else len(data) - 12  # after IHDR, or before IEND
    np.testing.assert_array_equal(decode(data[:end] + beside + data[end:], 3), COLOUR)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_only_the_orientation_is_read_of_exif(orientation):
    """The resolution has an odd type, with which Pillow cannot turn the image itself."""
    exif = b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIHH", 0x112, 3, 1, orientation, 0)
    exif += struct.pack("<HHI4s", 0x11A, 7, 2, b"ab\0\0") + struct.pack("<I", 0)
    image = Image.fromarray(COLOUR)
    plain = Image.Exif()
    plain[ExifTags.Base.Orientation] = orientation
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, exif=plain)))))
    np.testing.assert_array_equal(decode(encoded(image, exif=exif), 3), upright)


def test_first_frame_of_an_animation():
    frames = [Image.new("L", (3, 3), value) for value in (0, 255)]
    assert (decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 1) == 0).all()


def test_arrays():
    np.testing.assert_array_equal(decode(COLOUR, 3), COLOUR)
    np.testing.assert_array_equal(decode(COLOUR[..., 0], 1), COLOUR[..., :1])
    np.testing.assert_array_equal(decode(COLOUR[..., :1], 3), np.repeat(COLOUR[..., :1], 3, axis=2))
    np.testing.assert_array_equal(decode(COLOUR, 1), decode(encoded(Image.fromarray(COLOUR)), 1))
    for array in (COLOUR.astype(np.float32), COLOUR[None], COLOUR[..., :2], COLOUR[:0]):
        with pytest.raises(BadImage, match="expected uint8"):
            decode(array, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a text file called .jpg",
        encoded(Image.fromarray(random_images(3)[4]), "JPEG")[:-400],
        encoded(Image.fromarray(random_images(3)[4]))[:-400],
        encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"),
    ],
    ids=["empty", "text", "truncated JPEG", "truncated PNG", "floating point"],
)
def test_what_cannot_be_read(data):
    with pytest.raises(BadImage, match=r"\w"):
        decode(data, 3)


@pytest.mark.parametrize("limit", [20, 10])  # Pillow warns above it and raises above its double
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs(monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(BadImage, match=r"pixels|px"):
        decode(encoded(Image.fromarray(COLOUR)), 3)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "TIFF", "WEBP"])
def test_damage_never_raises_anything_else(format_):
    random = np.random.default_rng(0)
    intact = np.frombuffer(encoded(Image.fromarray(random_images(3)[1]), format_), np.uint8)
    for _ in range(60):
        damaged = intact.copy()
        damaged[random.integers(0, len(damaged), 12)] = random.integers(0, 256, 12)
        with contextlib.suppress(BadImage):
            assert decode(damaged.tobytes(), 3).dtype == np.uint8


def waves(height, width, channels=3):
    """Makes a smooth picture, uint8 [H, W, C] or [H, W]; a reduced decoding must give the means of its blocks."""
    y, x = np.mgrid[:height, :width] / 40
    image = np.stack([127 + 120 * np.sin(y * (c + 1) + x) * np.cos(x * (2 - c)) for c in range(channels)], -1)
    return np.rint(image).astype(np.uint8).squeeze(axis=2 if channels == 1 else ())


@pytest.mark.parametrize("size", [(64, 48), (67, 41), (1, 1), (9, 130)])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_plain_jpegs_are_decoded_to_pillows_pixels(subsampling, progressive, size):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (*size, 3), np.uint8))
    data = encoded(image, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(decode(data, 3), np.asarray(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(decode(data, 1)[..., 0], np.asarray(Image.open(io.BytesIO(data)).convert("L")))
    grey = encoded(image.convert("L"), "JPEG", progressive=progressive)
    np.testing.assert_array_equal(decode(grey, 1)[..., 0], np.asarray(Image.open(io.BytesIO(grey))))
    np.testing.assert_array_equal(decode(grey, 3), np.asarray(Image.open(io.BytesIO(grey)).convert("RGB")))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reduction", jpeg.REDUCTIONS)
def test_a_reduced_jpeg_holds_the_means_of_its_blocks(reduction, channels):
    image = waves(83, 120, channels)
    data = encoded(Image.fromarray(image), "JPEG", quality=95, subsampling=0)
    asked = []
    got = decode_part(data, channels, lambda *size: asked.append(size) or Part(reduction=reduction))
    assert asked == [(83, 120)] and got[1:] == (83, 120, reduction, 0, 0, True)
    assert got.pixels.shape == (-(-83 // reduction), -(-120 // reduction), channels)
    rows, columns = 83 // reduction, 120 // reduction  # whole blocks
    means = image[: rows * reduction, : columns * reduction].reshape(rows, reduction, columns, reduction, -1)
    np.testing.assert_allclose(got.pixels[:rows, :columns], means.mean((1, 3)), atol=6)


def test_what_is_no_plain_jpeg_is_decoded_whole():
    exif = Image.Exif()
    exif[0x0112] = 3
    image = Image.fromarray(waves(64, 64))
    turned, cmyk = encoded(image, "JPEG", exif=exif), encoded(image.convert("CMYK"), "JPEG")
    for data in (encoded(image), turned, cmyk, np.asarray(image)):
        got = decode_part(data, 3, lambda height, width: Part(reduction=4))
        assert got.reduction == 1 and not got.intact and got.pixels.shape == (64, 64, 3)
        np.testing.assert_array_equal(got.pixels, decode(data, 3))
    into_grey = decode_part(encoded(image, "JPEG"), 1, lambda height, width: Part(reduction=4))
    assert into_grey.reduction == 1
    with pytest.raises(BadImage, match=r"(?i)truncated"):
        decode_part(encoded(image, "JPEG")[:-400], 3, lambda height, width: Part(reduction=4))


def kinds_of_image():
    """Makes a plain JPEG and other kinds of image; the JPEG on its side is shown as 60 x 90 px."""
    image, exif = Image.fromarray(waves(60, 90)), Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(waves(90, 60)), "JPEG", exif=exif)
    return {
        "JPEG": encoded(image, "JPEG"),
        "JPEG on its side": turned,
        "CMYK": encoded(image.convert("CMYK"), "JPEG"),
        "PNG": encoded(image),
        "array": np.asarray(image),
        "JPEG with a fault": encoded(image, "JPEG").replace(b"\xff\xdb", b"\0\xff\xdb", 1),
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", kinds_of_image())
def test_a_part_of_any_image_is_the_crop_of_the_whole(kind, channels):
    data, asked, known_size = kinds_of_image()[kind], [], None
    whole = decode(data, channels)
    assert whole.shape[:2] == (60, 90)
    for box in (Box(0, 0, 60, 90), Box(17, 32, 33, 41), Box(59, 89, 1, 1), Box(5, 3, 55, 20)):
        got = decode_part(data, channels, lambda *size, box=box: asked.append(size) or Part(box), known_size)
        assert got[1:6] == (60, 90, 1, box.top, box.left)
        bottom, right = box.top + box.height, box.left + box.width
        np.testing.assert_array_equal(got.pixels, whole[box.top : bottom, box.left : right])
        whole_is_kept = isinstance(got.pixels.base, np.ndarray) and got.pixels.base.size > got.pixels.size
        assert not whole_is_kept
        known_size = (60, 90) if got.intact else None
    assert asked[-1] == (60, 90) and (known_size is not None) == (kind == "JPEG" and channels == 3)


def test_the_size_is_known_without_decoding():
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "JPEG")
    assert size_of(file.getvalue()[:-20]) == (20, 30)
    assert size_of(np.zeros((5, 7, 3), np.uint8)) == (5, 7)
    assert size_of(b"no image") is None

"""Checks Huffman codes, and that arrays come back bit by bit from a small file or not at all."""

import contextlib
import json
import struct
import zlib
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import settings

from big_distill.errors import RunError
from big_distill.weights import container
from big_distill.weights.container import encodings, huffman


def entropy(symbols):
    shares = np.bincount(symbols) / len(symbols)
    return -(shares[shares > 0] * np.log2(shares[shares > 0])).sum()


@pytest.mark.parametrize("count", [0, 1, 2, 4095, 4096, 4097, 30_000])
@pytest.mark.parametrize("num_symbols", [1, 2, 300])
def test_symbols_come_back(count, num_symbols):
    symbols = np.random.default_rng(0).geometric(0.02, count) % num_symbols
    np.testing.assert_array_equal(huffman.decode(huffman.encode(symbols)), symbols)


def test_a_code_is_as_short_as_huffmans():
    symbols = np.repeat(np.arange(5), [15, 7, 6, 6, 5])  # 87 bits, by hand
    lengths = huffman._code_lengths(np.bincount(symbols))
    assert lengths.tolist() == [1, 3, 3, 3, 3] and lengths[symbols].sum() == 87
    many = np.minimum(np.random.default_rng(0).geometric(0.05, 200_000), 255)
    assert 8 * len(huffman.encode(many)) / len(many) < entropy(many) + 0.1


def test_codes_longer_than_16_bits_are_avoided():
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman._code_lengths(np.array(fibonacci))
    assert lengths.max() == 16 and (2.0**-lengths).sum() <= 1
    symbols = np.repeat(np.arange(24), fibonacci[:24])
    np.testing.assert_array_equal(huffman.decode(huffman.encode(symbols)), symbols)


def sparse(rng, shape, kept):
    array = rng.normal(size=shape).astype("f")
    array[rng.random(shape) > kept] = 0
    return array


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shared = np.float32([-0.0, -1.5, 0.25, np.float32(1e-42)])[rng.integers(0, 4, (300, 100))]
    return {
        "params/fc1/kernel": np.where(rng.random((300, 100)) < 0.05, shared, np.float32(0)),
        "params/fc2/kernel": sparse(rng, (100, 50), 0.02),
        "params/conv/kernel": sparse(rng, (3, 3, 4, 8), 1.0),
        "params/empty/kernel": np.zeros((40, 30), np.float32),
        "params/fc1/bias": rng.normal(size=100).astype("f"),
        "scalar": np.float32(3),
        "__card__": np.frombuffer(b'{"a": 1}', np.uint8),
    }


def test_arrays_come_back_bit_by_bit(arrays, tmp_path):
    path = tmp_path / "a.bdz"
    container.write(path, arrays)
    found = container.read(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes(), name
    assert path.stat().st_size < 0.1 * sum(array.nbytes for array in arrays.values())
    assert [file.name for file in tmp_path.iterdir()] == ["a.bdz"]


@pytest.mark.parametrize("top", [1, 7, 127])
@pytest.mark.parametrize("kept", [1.0, 0.05])
def test_integers_times_scales_come_back_bit_by_bit(top, kept, tmp_path):
    rng = np.random.default_rng(0)
    integers = rng.integers(-top, top + 1, (3, 3, 16, 50)) * (rng.random((3, 3, 16, 50)) < kept)
    integers[0, 0, 0] = np.where(np.arange(50) == 3, 0, top)  # the largest occurs, as it does after rounding
    integers[..., 3] = 0
    scales = rng.lognormal(-3, 2, 50).astype("f")
    kernel = integers.astype("f") * scales
    assert encodings.grid_of(kernel) is not None
    container.write(tmp_path / "a.bdz", {"kernel": kernel})
    assert container.read(tmp_path / "a.bdz")["kernel"].tobytes() == kernel.tobytes()
    ideal = entropy(integers.ravel() + top) * integers.size / 8 + scales.nbytes
    assert (tmp_path / "a.bdz").stat().st_size < 1.06 * ideal + 500
    kernel[1, 1, 1, 1] = np.nextafter(scales[1] * top, np.float32(0))
    assert encodings.grid_of(kernel) is None


def test_bfloat16_takes_two_bytes(tmp_path):
    halves = (np.random.default_rng(0).normal(size=(100, 30)).astype("f").view(np.uint32) & 0xFFFF0000).view("f")
    container.write(tmp_path / "a.bdz", {"kernel": halves, "bias": halves[0]})
    found = container.read(tmp_path / "a.bdz")
    assert found["kernel"].tobytes() == halves.tobytes() and found["bias"].tobytes() == halves[0].tobytes()
    assert (tmp_path / "a.bdz").stat().st_size < 2 * halves.size + 250


def test_a_kernel_costs_its_entropy(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.choice(16, size=(784, 300), p=np.arange(1, 17) / 136)
    used = rng.random(codes.shape) < 0.05
    kernel = np.where(used, rng.normal(size=16).astype("f")[codes], np.float32(0))
    container.write(tmp_path / "a.bdz", {"kernel": kernel})
    positions = -(0.05 * np.log2(0.05) + 0.95 * np.log2(0.95)) * codes.size
    ideal = (positions + entropy(codes[used]) * used.sum()) / 8
    assert ideal < (tmp_path / "a.bdz").stat().st_size < 1.02 * ideal + 600


@pytest.mark.parametrize("gap", [0, 1, 254, 255, 256, 509, 510, 511, 3000])
def test_gaps_of_any_length(gap, tmp_path):
    kernel = np.zeros((1, gap + 3), np.float32)
    kernel[0, gap], kernel[0, gap + 2] = 1, 2
    used = np.flatnonzero(kernel)
    np.testing.assert_array_equal(encodings._positions(encodings._gaps(used)), used)
    container.write(tmp_path / "a.bdz", {"kernel": kernel})
    np.testing.assert_array_equal(container.read(tmp_path / "a.bdz")["kernel"], kernel)


def test_every_flipped_bit_and_every_cut_is_noticed(arrays, tmp_path):
    path = tmp_path / "a.bdz"
    container.write(path, arrays)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [*range(12), *rng.integers(0, len(whole), 100)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(RunError) as error:
            container.read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    for size in (0, 3, 39, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(RunError, match=r"a.bdz is (not a container|damaged)"):
            container.read(path)
    path.write_bytes(whole[:3] + b"\x02" + whole[4:])
    with pytest.raises(RunError, match=r"is a container of version 2; this big_distill reads version 1"):
        container.read(path)


def signed(header, payload=b""):
    """Makes a container with a right checksum."""
    packed = zlib.compress(json.dumps(header).encode())
    data = b"BDZ\x01" + struct.pack("<I", len(packed)) + packed + payload
    return data + sha256(data).digest()


@pytest.mark.parametrize(
    "header, payload",
    [
        ([], b"more"),
        ({"a": 1}, b""),
        ([["k", "<f4", [2], "raw", "C", [4]]], bytes(4)),
        ([["k", "<f4", [1 << 50], "deflated", "C", [4]]], bytes(4)),
        ([["k", "<f4", [-1], "raw", "C", [4]]], bytes(4)),
        ([["k", "O", [1], "raw", "C", [8]]], bytes(8)),
        ([["k", "(,)f4,i4", [1], "raw", "C", [8]]], bytes(8)),
        ([[7, "<f4", [1], "raw", "C", [4]]], bytes(4)),
        ([["k", "<f4", [1], "raw", "C", [4]], ["k", "<f4", [1], "raw", "C", [4]]], bytes(8)),
        ([["k", "<f4", [1], "raw", "C", [8, -4]]], bytes(4)),
        ([["k", "<f4", [1 << 32], "sparse", "C", [len(huffman.encode(np.array([9]))), 4]]], bytes(4)),
        ([["k", "<f4", [4], "shared", "C", [4]]], bytes(4)),
        ([["k", "<f4", [4], "sparse", "C", [30, 4]]], bytes(34)),
        (
            [["k", "<f4", [2], "sparse", "C", [len(huffman.encode(np.array([9]))), 4]]],
            huffman.encode(np.array([9])) + bytes(4),
        ),
    ],
)
def test_what_was_made_to_harm_is_one_line(header, payload, tmp_path):
    (tmp_path / "a.bdz").write_bytes(signed(header, payload))
    with pytest.raises(RunError, match=r"a.bdz is not a valid container: "):
        container.read(tmp_path / "a.bdz")


def test_random_streams_never_hang_or_crash():
    rng = np.random.default_rng(0)
    good = huffman.encode(rng.geometric(0.1, 5000))
    for _ in range(3 * settings().max_examples // 2):
        data = bytearray(good)
        for position in rng.integers(0, len(data), 3):
            data[position] = rng.integers(256)
        with contextlib.suppress(ValueError, zlib.error):
            assert len(huffman.decode(bytes(data))) <= 8 * len(data)


def test_a_header_that_is_too_deep_is_one_line(tmp_path):
    packed = zlib.compress(b"[" * 200_000)
    data = b"BDZ\x01" + struct.pack("<I", len(packed)) + packed
    (tmp_path / "a.bdz").write_bytes(data + sha256(data).digest())
    with pytest.raises(RunError, match=r"a.bdz is not a valid container"):
        container.read(tmp_path / "a.bdz")

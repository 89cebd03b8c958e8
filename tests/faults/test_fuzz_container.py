"""Checks random containers: the checksum catches damage; with a right one, arrays are as announced, or one line."""

import json
import struct
import zlib
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import assert_one_line, bounded, json_mutations, mutations

from big_distill.errors import RunError
from big_distill.weights import container
from big_distill.weights.container import encodings, huffman

RANDOM = np.random.default_rng(0)
MEGABYTES = 100  # peak for files of some kB: arrays of 4,096 times their size, and twice that while reading


def sparse(values, kept=0.2):
    return np.where(RANDOM.random(values.shape) < kept, values, 0).astype(np.float32)


ARRAYS = {
    "deflated": np.zeros((50, 40), np.int32),
    "half": (RANDOM.normal(size=200).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32),
    "sparse": sparse(RANDOM.normal(size=(40, 10))),
    "shared": sparse(np.float32([-0.1, 0.2, 0.7])[RANDOM.integers(0, 3, (40, 10))]),
    "integers": (RANDOM.integers(-7, 8, (30, 20)) * np.float32(0.3)).astype(np.float32),
    "sparse_integers": np.concatenate(
        [sparse(RANDOM.integers(-6, 7, (99, 20)), kept=0.1), np.full((1, 20), 7)], dtype=np.float32
    )
    * RANDOM.lognormal(size=20).astype(np.float32),
    "raw": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "flags": np.array([True, False]),
    "scalar": np.float32(3),
    "gaps": np.eye(1, 3000, 2999, dtype=np.float32),
}


def header_of(whole):
    """Returns (the list in the header, the bytes after the header)."""
    (size,) = struct.unpack_from("<I", whole, 4)
    return json.loads(zlib.decompress(whole[8 : 8 + size])), whole[8 + size : -32]


def sealed(header, payload):
    """Makes a container with a right checksum. `header` is a value, or bytes in place of its JSON."""
    packed = zlib.compress(header if isinstance(header, bytes) else json.dumps(header).encode())
    content = b"BDZ\x01" + struct.pack("<I", len(packed)) + packed + payload
    return content + sha256(content).digest()


def written(arrays, path):
    container.write(path, arrays)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("containers")


@pytest.fixture(scope="module")
def whole(folder):
    return written(ARRAYS, folder / "whole.bdz")


@pytest.fixture(scope="module")
def each(folder):
    """Returns [header, payload] of every array, each in a container of its own."""
    return [header_of(written({name: array}, folder / "each.bdz")) for name, array in ARRAYS.items()]


def assert_robust(data, path):
    """Returns the line with which the file was refused, else None."""
    path.write_bytes(data)
    with bounded(MEGABYTES):
        try:
            arrays = container.read(path)
        except RunError as error:
            assert_one_line(error, path)
            return str(error)
    announced = {name: (dtype, tuple(shape)) for name, dtype, shape, *_ in header_of(data)[0]}
    assert {name: (array.dtype.str, array.shape) for name, array in arrays.items()} == announced
    assert sum(array.nbytes for array in arrays.values()) <= encodings.MAX_RATIO * len(data)
    return None


def test_all_kinds_are_there(each):
    assert {header[0][3] for header, _ in each} == set(encodings.PARTS)


@given(data=st.data())
def test_fuzzed_bytes(data, whole, folder):
    damaged = data.draw(mutations(whole))
    refused = assert_robust(damaged, folder / "w.bdz")
    assert (refused is None) == (damaged == whole)


@given(data=st.data())
def test_fuzzed_headers(data, each, folder):
    header, payload = data.draw(st.sampled_from(each))
    assert_robust(sealed(data.draw(json_mutations(header)), payload), folder / "w.bdz")


@given(data=st.data())
def test_fuzzed_json(data, each, folder):
    header, payload = data.draw(st.sampled_from(each))
    assert_robust(sealed(data.draw(mutations(json.dumps(header).encode())), payload), folder / "w.bdz")


@given(data=st.data())
def test_fuzzed_parts(data, each, folder):
    """The header is right: the sizes of its parts are those of the damaged parts."""
    header, payload = data.draw(st.sampled_from(each))
    *entry, sizes = header[0]
    starts = np.cumsum([0, *sizes])
    parts = [payload[start : start + size] for start, size in zip(starts, sizes, strict=False)]
    index = data.draw(st.integers(0, len(parts) - 1))
    parts[index] = data.draw(mutations(parts[index]))
    assert_robust(sealed([[*entry, [len(part) for part in parts]]], b"".join(parts)), folder / "w.bdz")


@given(
    lengths=st.lists(st.integers(0, 17), max_size=8),
    count=st.integers(0, 5000) | st.sampled_from([4097, 1 << 31, (1 << 32) - 1]),
    sizes=st.lists(st.integers(0, 300) | st.just((1 << 32) - 1), max_size=3),
    stream=st.binary(max_size=100),
)
def test_fuzzed_codes(lengths, count, sizes, stream):
    """Tables have any lengths; damage to a compressed table alone would not get past zlib's checksum."""
    table = zlib.compress(bytes(lengths))
    data = struct.pack("<II", count, len(table)) + table + np.array(sizes, "<u4").tobytes() + stream
    with bounded(MEGABYTES):
        try:
            symbols = huffman.decode(data)
        except ValueError:
            return
    assert len(symbols) == count <= 8 * len(stream) + 32 * len(sizes)
    assert set(symbols.tolist()) <= {symbol for symbol, length in enumerate(lengths) if length}

"""Files of PyTorch made of chance: a right answer or one line, never a crash."""

import numpy as np
import pytest
import torch_writer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_writer import Storage, saved, tensor, view

from big_distill.errors import RunError

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools reads even what is refused
FORMATS = ("legacy", "zip")
KERNEL = np.arange(24, dtype=np.float32)
OK = Storage(np.zeros(4, np.float32))
FUZZ = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WHOLE = {
    format_: saved({"state_dict": {"w": tensor(KERNEL), "t": view(OK, 1, (2,), (2,)), "n": 3}}, format_)
    for format_ in FORMATS
}


def assert_robust(read, data):
    """Reads the file, or refuses it in one line; never more numbers than it has bytes."""
    try:
        arrays = read(data)
    except RunError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert arrays and all(array.size <= len(data) for array in arrays.values())
        assert all(isinstance(name, str) and len(array.tobytes()) == array.nbytes for name, array in arrays.items())


@FUZZ
@given(data=st.data(), format_=st.sampled_from(FORMATS))
def test_fuzzed_bytes(read, data, format_):
    damaged = bytearray(WHOLE[format_])
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(damaged)))
        length = data.draw(st.integers(0, 8))
        damaged[position : position + length] = data.draw(st.binary(min_size=0, max_size=8))
    assert_robust(read, bytes(damaged))


@FUZZ
@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"PK\x03\x04", WHOLE["legacy"][:60]]))
def test_fuzzed_files(read, data, start):
    assert_robust(read, start + data)


GLOBALS = ("torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter", "torch\nFloatStorage")
TEXT = st.sampled_from(["storage", "torch", "FloatStorage", "0", "state_dict", "w", "collections", "OrderedDict"])
PIECE = st.one_of(
    st.sampled_from([bytes([code]) for code in b"(N)]}tabeusRQ\x85\x86\x87\x88\x89\x93\x94."]),
    st.sampled_from([b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"K\x00", b"K\x04", b"M\xff\xff", b"J\xff\xff\xff\xff"]),
    st.sampled_from([f"c{name}\n".encode() for name in GLOBALS]),
    TEXT.map(lambda text: b"\x8c" + bytes([len(text)]) + text.encode()),
    st.just(torch_writer.pickled({"w": tensor(OK.array)})[0][:-1]),
    st.just(torch_writer.pickled(OK)[0][:-1]),
)


@FUZZ
@given(pieces=st.lists(PIECE, max_size=20), format_=st.sampled_from(FORMATS))
def test_fuzzed_opcodes(read, pieces, format_):
    wrap = torch_writer.legacy_file if format_ == "legacy" else torch_writer.zip_file
    assert_robust(read, wrap(b"\x80\x04" + b"".join(pieces) + b".", [OK.array]))

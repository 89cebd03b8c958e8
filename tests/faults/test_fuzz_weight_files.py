"""Checks that random weight files of other projects give arrays no larger than the file allows, or one line."""

import io
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_writer
from hypothesis import example, given
from hypothesis import strategies as st
from mutations import assert_one_line, bounded, json_mutations, mutations
from torch_writer import Storage, saved, tensor, view

from big_distill.errors import RunError
from big_distill.weights.pretrained import formats

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools reads even what is refused
MEGABYTES = 30
KERNEL = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ARRAYS = {"params/head/kernel": KERNEL, "b": np.float16([1, 2]), "n": np.int64(3), "flag": np.array([True])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def assert_robust(data, path, most=1):
    """Checks that a file gives arrays of numbers of at most `most` times its bytes, or one line that names it."""
    path.write_bytes(data)
    with bounded(MEGABYTES):
        try:
            arrays = formats.read(path).arrays
        except RunError as error:
            assert_one_line(error, path)
            return {}
        assert all(isinstance(name, str) for name in arrays)
        assert all(array.dtype.kind in "biuf" or array.dtype == ml_dtypes.bfloat16 for array in arrays.values())
        assert sum(len(array.tobytes()) for array in arrays.values()) <= most * len(data)
    return arrays


# ----------------------------------------------------------------------------------------------------------------------
# .npz


def npz(arrays, save=np.savez):
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def npy(array, order="C"):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array, order=order))
    return file.getvalue()


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    """Zips members about which zipfile does not complain."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


@given(data=mutations(npz(ARRAYS), npz(ARRAYS, np.savez_compressed)))
def test_fuzzed_npz(data, folder):
    """An array that is still read is the one that was written: zip has checksums."""
    for name, array in assert_robust(data, folder / "w.npz", most=1032).items():
        assert array.dtype == ARRAYS[name].dtype and np.array_equal(array, ARRAYS[name])


@given(
    data=mutations(npy(KERNEL), npy(KERNEL, "F"), npy(ARRAYS["b"]), npy(ARRAYS["n"]), npy(np.zeros(0))),
    compression=st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)),
)
def test_fuzzed_npy(data, compression, folder):
    assert_robust(zipped([("w.npy", data)], compression), folder / "w.npz", most=1032)


NPY_FIELDS = {"descr": "<f4", "fortran_order": False, "shape": (2, 3)}
DESCRS = st.sampled_from(("|O", "|V0", "|V8", "<U3", "|S0", "|S2147483647", "<M8[s]", "<c8", "<f4,<f4", ">f8", "<i4"))
SHAPES = st.lists(st.sampled_from((0, 1, 2, -1, 1 << 20, 1 << 31, 1 << 40, 1 << 62, 10**30)), max_size=5).map(tuple)


@given(fields=json_mutations(NPY_FIELDS), descr=st.none() | DESCRS, shape=st.none() | SHAPES)
@example(fields=NPY_FIELDS, descr=None, shape=(1 << 40,))
@example(fields=NPY_FIELDS, descr="|V0", shape=(1 << 40,))
@example(fields=NPY_FIELDS, descr=None, shape=(10**30,))
def test_fuzzed_npy_headers(fields, descr, shape, folder):
    if isinstance(fields, dict):
        fields = fields | ({"descr": descr} if descr else {}) | ({} if shape is None else {"shape": shape})
    header = (repr(fields) + "\n").encode(errors="surrogatepass")
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + bytes(24)
    assert_robust(zipped([("w.npy", data)]), folder / "w.npz", most=1032)


ONE = npy(np.float32([1]))
REFUSED = {
    "EOF": [("w.npy", b"hello")],
    "goes on behind its array": [("w.npy", ONE + b"more")],
    "is there twice": [("w.npy", ONE), ("w", ONE)],
    "has dtype <U2, which no weights have": [("w.npy", npy(np.array(["ab"])))],
    "has dtype complex64, which no weights have": [("w.npy", npy(np.complex64([1j])))],
}


@pytest.mark.parametrize("message", REFUSED)
def test_members_that_are_no_weights(message, folder):
    (folder / "w.npz").write_bytes(zipped(REFUSED[message]))
    with pytest.raises(RunError, match=f"w.npz is not a weight file .*{message}") as error:
        formats.read(folder / "w.npz")
    assert_one_line(error.value)


# ----------------------------------------------------------------------------------------------------------------------
# .safetensors

SAFETENSORS = safetensors.numpy.save({name: np.asarray(array) for name, array in ARRAYS.items()})
SAFE_HEADER = json.loads(SAFETENSORS[8 : 8 + int.from_bytes(SAFETENSORS[:8], "little")])


@given(data=mutations(SAFETENSORS, safetensors.numpy.save({"w": KERNEL}, {"format": "pt"})))
def test_fuzzed_safetensors(data, folder):
    assert_robust(data, folder / "w.safetensors")


TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(("F32", "BF16", "F8_E4M3", "F8_E8M0", "F4", "C64", "BOOL", "I64", "U16", "")),
        "shape": st.lists(st.sampled_from((0, 1, 2, 4, 1 << 31, 1 << 62, (1 << 64) - 1)), max_size=4),
        "data_offsets": st.sampled_from(([0, 8], [0, 0], [8, 0], [0, 16], [0, 1 << 63], [-1, 8])),
    }
)


@given(header=json_mutations(SAFE_HEADER) | st.dictionaries(st.sampled_from("ab"), TENSOR), size=st.integers(0, 200))
def test_fuzzed_safetensors_headers(header, size, folder):
    text = json.dumps(header).encode()
    assert_robust(len(text).to_bytes(8, "little") + text + bytes(size), folder / "w.safetensors")


# ----------------------------------------------------------------------------------------------------------------------
# PyTorch's

FORMATS = ("legacy", "zip")
OK = Storage(np.zeros(4, np.float32))
STATE = {"state_dict": {"w": tensor(KERNEL), "t": view(OK, 1, (2,), (2,)), "n": 3}}
WHOLE = {format_: saved(STATE, format_) for format_ in FORMATS}


@given(data=mutations(*WHOLE.values()) | mutations(b"", b"PK\x03\x04", WHOLE["legacy"][:60]))
def test_fuzzed_torch_files(data, folder):
    assert_robust(data, folder / "w.pth")


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
PICKLES = tuple(torch_writer.pickled({"w": tensor(OK.array)}, protocol)[0] for protocol in (2, 4))


def in_file(format_, pickle):
    """Puts a whole file around a pickle, so that only the pickle's reader can refuse it."""
    return (torch_writer.legacy_file if format_ == "legacy" else torch_writer.zip_file)(pickle, [OK.array])


@given(pieces=st.lists(PIECE, max_size=20), format_=st.sampled_from(FORMATS))
def test_fuzzed_opcodes(pieces, format_, folder):
    assert_robust(in_file(format_, b"\x80\x04" + b"".join(pieces) + b"."), folder / "w.pth")


@given(pickle=mutations(*PICKLES), format_=st.sampled_from(FORMATS))
def test_fuzzed_pickles(pickle, format_, folder):
    assert_robust(in_file(format_, pickle), folder / "w.pth")

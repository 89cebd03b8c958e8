"""Checks `.safetensors`: all types that NumPy and ml_dtypes have, and one line for a damaged file."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from big_distill.errors import RunError
from big_distill.weights.pretrained import formats

TYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32, np.int16, np.int8, np.uint8, bool)


def written(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.safetensors"


def test_every_type(path):
    arrays = {np.dtype(dtype).name: np.arange(6).reshape(2, 3).astype(dtype) for dtype in TYPES}
    arrays |= {"scalar": np.array(2.5), "empty": np.zeros((0, 3), np.float32), "nan": np.array([np.nan, -0.0])}
    save_file(arrays, path)
    found = formats.read(path).arrays
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_bfloat16_as_others_write_it(path):
    header = {"__metadata__": {"format": "pt"}, "w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    path.write_bytes(written(header, b"\xc0\x3f\x00\xc0"))
    assert formats.read(path).arrays["w"].tolist() == [1.5, -2.0]


WHOLE = written({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, bytes(8))
DAMAGED = {
    "empty": b"",
    "text": b"weights",
    "truncated": WHOLE[:-1],
    "trailing": WHOLE + b"?",
    "header": WHOLE.replace(b'"w"', b'"w'),
    "header of 2 ** 63": b"\xff" * 8 + WHOLE[8:],
    "shape": WHOLE.replace(b"[2]", b"[3]"),
    "huge shape": written({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 8]}}, bytes(8)),
    "huge shape of nothing": written({"w": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}),
    "type": WHOLE.replace(b"F32", b"F33"),
    "float8": written({"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
    "complex": WHOLE.replace(b"F32", b"C64").replace(b"[2]", b"[1]"),
    "offsets": WHOLE.replace(b"[0, 8]", b"[8, 0]"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_files_are_one_line(path, damage):
    path.write_bytes(DAMAGED[damage])
    with pytest.raises(RunError, match=r"w.safetensors is not a weight file .*, or it is damaged: \w") as error:
        formats.read(path)
    assert "\n" not in str(error.value)


def test_no_file(path, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for missing in (path, tmp_path / "folder.safetensors"):
        with pytest.raises(RunError, match=r".safetensors is not a weight file \(.safetensors\), or it is damaged: \w"):
            formats.read(missing)

"""Checks random archives of data sets: reading gives what is in them, or one line that names the archive."""

import gzip
import io
import tarfile

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from mutations import assert_one_line, bounded, mutations

from big_distill.data import archives, idx
from big_distill.errors import DataError

IDX = b"\0\0\x08\x01" + (5).to_bytes(4) + bytes(range(5))
NAMES = ("a.bin", "b.bin")


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in NAMES:
            info = tarfile.TarInfo(f"folder/{name}")
            info.size = 600
            archive.addfile(info, io.BytesIO(bytes(600)))
    return file.getvalue()[:4096]  # cuts off most of the zeros at its end


def mat():
    file = io.BytesIO()
    scipy.io.savemat(file, {"labels": np.array([[1, 2, 3]], np.uint8)}, do_compression=True)
    return file.getvalue()


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    monkeypatch.setattr(archives, "_MAX_BYTES", 1 << 20)


def reads(read, data, path):
    """Returns what `read` reads from the archive, None if it refuses it."""
    path.write_bytes(data)
    with bounded(megabytes=60):
        try:
            return read(path)
        except DataError as error:
            return assert_one_line(error, path)


@given(data=mutations(IDX).map(gzip.compress) | mutations(gzip.compress(IDX)))
def test_fuzzed_idx(data, tmp_path):
    items = reads(lambda path: idx.read_idx(path, 1 << 20), data, tmp_path / "a.gz")
    assert items is None or (items.dtype == np.uint8 and 0 < items.size <= 1 << 20)


@given(data=mutations(tar()).map(gzip.compress) | mutations(gzip.compress(tar())))
def test_fuzzed_tar(data, tmp_path):
    files = reads(lambda path: archives._read_members(path, "folder/", NAMES), data, tmp_path / "a.tgz")
    assert files is None or (files.keys() == set(NAMES) and sum(map(len, files.values())) <= 1 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


@given(data=mutations(mat()))
def test_fuzzed_mat(data, tmp_path):
    rows = reads(lambda path: archives._read_mat(path, "labels"), data, tmp_path / "a.mat")
    assert rows is None or (rows[0].dtype.kind in "iu" and rows[0].ndim == 1)

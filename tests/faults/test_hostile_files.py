"""Checks that files made to harm run nothing, write nothing, and cost no more than their size."""

import dataclasses
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
import torch_writer
from mutations import assert_one_line, bounded
from PIL import Image
from test_fuzz_container import sealed

from big_distill import models, weights
from big_distill.config import ModelConfig
from big_distill.data.decode import BadImage, decode
from big_distill.errors import RunError
from big_distill.run_dir import layout
from big_distill.state import Card, Model
from big_distill.weights.container import huffman


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Names a file that exists once anything of these files ran: a pickle, Ghostscript, or a module `canary`."""
    path, programs = tmp_path / "touched", tmp_path / "bin"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {path}\n")
    (programs / "gs").chmod(0o755)
    (programs / "canary.py").write_text(f"import pathlib\npathlib.Path({str(path)!r}).touch()\ndef model(*_): pass\n")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.syspath_prepend(programs)
    yield path
    sys.modules.pop("canary", None)


class Touch:
    """Pickles as a call that touches the canary."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def test_the_canary_sings(canary):
    pickle.loads(pickle.dumps(Touch(canary)))
    assert canary.exists()
    for act in (
        ["gs"],
        [sys.executable, "-c", f"import sys; sys.path.append({str(canary.parent / 'bin')!r}); import canary"],
    ):
        canary.unlink()
        subprocess.run(act, check=True)
        assert canary.exists()


def saved(save, *arguments):
    file = io.BytesIO()
    save(file, *arguments)
    return file.getvalue()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def objects(canary):
    """Makes a .npy file of an object."""
    return saved(np.save, np.array([Touch(canary)], object))


def pickled(canary):
    return pickle.dumps({"state_dict": Touch(canary)}, 2)


def own_card(canary, name="canary:model"):
    """Makes the card of a network that says it is of the user's own module."""
    model = weights.ConfigArchitecture(ModelConfig(name=name), 2, 1, 8, Card(image_size=8))
    return np.frombuffer(json.dumps(dataclasses.asdict(model)).encode(), np.uint8)


PICKLES = {
    "objects.npz": lambda canary: zipped([("w.npy", objects(canary))]),
    "objects alone.npz": objects,
    "pickle.npz": pickled,
    "pickle within.npz": lambda canary: zipped([("w.npy", pickled(canary))]),
    "card.npz": lambda canary: zipped([("__card__.npy", objects(canary))]),
    "own.npz": lambda canary: zipped([("__card__.npy", saved(np.save, own_card(canary)))]),
    "system.npz": lambda canary: zipped([("__card__.npy", saved(np.save, own_card(canary, "os:system")))]),
    "own.bdz": lambda canary: sealed(
        [["__card__", "|u1", [len(own_card(canary))], "raw", "C", [len(own_card(canary))]]], own_card(canary).tobytes()
    ),
    "objects.bdz": lambda canary: sealed([["w", "|O", [1], "raw", "C", [8]]], bytes(8)),
    "pickle.safetensors": pickled,
    "pickle.pth": pickled,
    "legacy.pth": lambda canary: torch_writer.legacy_file(pickled(canary)),
    "zip.pth": lambda canary: torch_writer.zip_file(pickled(canary)),
    "zip.bin": lambda canary: torch_writer.zip_file(pickle.dumps(Touch(canary), 4)),
    "objects.pt": lambda canary: torch_writer.zip_file(pickle.dumps(np.array([Touch(canary)], object), 2)),
}


@pytest.mark.parametrize("name", PICKLES)
def test_no_weight_file_runs_anything(name, canary, tmp_path):
    (tmp_path / name).write_bytes(PICKLES[name](canary))
    with bounded(megabytes=60), pytest.raises(RunError) as error:
        weights.load(tmp_path / name)
    assert_one_line(error.value, tmp_path / name)
    assert not canary.exists() and "canary" not in sys.modules


def test_what_a_config_names_is_loaded(tmp_path, monkeypatch):
    """A user's own code is loaded if the config names it, or the config of the run directory that the file lies in."""
    params = {"scale": np.ones(2, np.float32)}
    monkeypatch.setattr(models.user_code, "load", lambda *_: lambda *_: Model(lambda *_: {"params": params}, None))
    architecture = weights.ConfigArchitecture(ModelConfig(name="mine:model"), 2, 1, 8, Card(image_size=8))
    weights.save(tmp_path / "student.npz", weights.Network(architecture, {"params": params}))
    with pytest.raises(RunError, match=r"asks for 'mine:model', which only a config may: .*; nothing was imported"):
        weights.load(tmp_path / "student.npz")
    assert weights.load(tmp_path / "student.npz", architecture).architecture == architecture
    other = dataclasses.replace(architecture, model=ModelConfig(name="mine:other"))
    with pytest.raises(RunError, match=r"asks for 'mine:model'"):
        weights.load(tmp_path / "student.npz", other)
    layout.write_config(tmp_path, layout.Config(student=ModelConfig(name="mine:model"), num_classes=2, batch_size=1))
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"]["view"]["image_size"], values["config"]["dtype"] = 8, "float32"
    values["config"]["source"] |= {"name": "digits", "num_train_examples": 1}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert weights.load(tmp_path).architecture == architecture


def test_a_run_directorys_config_is_read_without_its_code(canary, tmp_path):
    values = {
        "num_classes": 2,
        "batch_size": 1,
        "dtype": "float32",
        "view": {"image_size": 8},
        "student": {"name": "canary:model"},
    }
    values |= {"source": {"name": "canary:model", "num_train_examples": 1}, "objective": {"name": "canary:model"}}
    (tmp_path / "config.json").write_text(json.dumps({"config": values}))
    assert layout.read_config(tmp_path).student.name == "canary:model"
    assert not canary.exists()


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
%%EndComments
(%pipe%touch touched) (w) file
showpage
%%EOF
"""


def test_no_image_runs_anything(canary):
    with pytest.raises(BadImage, match="not an image of JPEG, PNG"):
        decode(EPS, 3)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "C:\\escaped"])
def test_no_path_in_an_archive_leads_anywhere(name, tmp_path):
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    kernel = np.ones(2, np.float32)
    (folder / "w.npz").write_bytes(zipped([(f"{name}.npy", saved(np.save, kernel))]))
    state = torch_writer.pickled({name: torch_writer.tensor(kernel)})
    (folder / "w.pth").write_bytes(torch_writer.zip_file(*state, folder=name))
    for file in ("w.npz", "w.pth"):
        with pytest.raises(RunError):  # it is read, but is no network
            weights.load(folder / file)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["w.npz", "w.pth"]


# ----------------------------------------------------------------------------------------------------------------------
# Bombs


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


SIDE = 50_000
BOMBS = {
    "png": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 6, 0, 0, 0))
    + chunk(b"IDAT", b""),
    "gif": b"GIF89a"
    + struct.pack("<HHBBB", SIDE, SIDE, 0xF0, 0, 0)
    + bytes(6)
    + b","
    + struct.pack("<HHHHBBB", 0, 0, SIDE, SIDE, 0, 2, 0),
    "bmp": b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm": b"P6 %d %d 255\n" % (SIDE, SIDE),
    "jpeg": saved(lambda file: Image.new("L", (8, 8)).save(file, "JPEG")).replace(b"\0\x08\0\x08", b"\xff\xff\xff\xff"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_picture_that_says_it_is_huge_costs_nothing(kind):
    with bounded(megabytes=10, seconds=2), pytest.raises(BadImage, match=r"pixels|px"):
        decode(BOMBS[kind], 3)


def overlapping():
    """Makes a zip whose directory lists its one megabyte of zeros a thousand times."""
    whole = zipped([("w.npy", saved(np.save, np.zeros(1 << 17)))])
    start = whole.index(b"PK\x01\x02")
    entry, end = whole[start : whole.index(b"PK\x05\x06")], bytearray(whole[whole.index(b"PK\x05\x06") :])
    end[8:16] = struct.pack("<HHI", 1000, 1000, 1000 * len(entry))
    return whole[:start] + entry * 1000 + bytes(end)


def header_only(shape):
    text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return zipped([("w.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)])


STREAM = huffman.encode(np.zeros(0, np.int64))
FILES = {
    "overlap.npz": (overlapping(), "its members overlap"),
    "claims.npz": (header_only((1 << 28,)), r"EOF|allocate"),
    "claims more.npz": (header_only((1 << 40,)), "allocate"),
    "claims.bdz": (sealed([["w", "<f4", [1 << 28], "sparse", "F", [len(STREAM), 0]]], STREAM), "arrays of more than"),
    "digits.bdz": (sealed([["w", "<f4", [10**4000] * 200, "raw", "C", [4]]], bytes(4)), "has shape"),
    "nothing.bdz": (sealed([["w", "<f4", [0, 10**30], "raw", "C", [0]]], b""), "has shape"),
    "axes.bdz": (sealed([["w", "<f4", [1 << 30] * 80_000, "raw", "C", [4]]], bytes(4)), "not a valid container"),
    "deep.bdz": (sealed(b"[" * 1_000_000, b""), "not a valid container"),
    "wide.bdz": (sealed(b"[" + b"[]," * 10_000_000 + b"[]]", b""), "not a valid container"),
    "claims.safetensors": ((1 << 40).to_bytes(8, "little") + b"{}", "header"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_claims_much_costs_little(name, tmp_path):
    data, message = FILES[name]
    (tmp_path / name).write_bytes(data)
    with bounded(megabytes=130), pytest.raises(RunError, match=message) as error:
        weights.load(tmp_path / name)
    assert_one_line(error.value, tmp_path / name)

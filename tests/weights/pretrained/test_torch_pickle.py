"""Checks that harmful, odd or damaged pickles of PyTorch are refused, with nothing called."""

import argparse
import collections
import copyreg
import datetime
import enum
import functools
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch_writer
from torch_writer import Call, Global, Storage, saved, tensor, view

KERNEL = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.25
V2, V1, PARAMETER = (
    Global("torch._utils", name) for name in ("_rebuild_tensor_v2", "_rebuild_tensor", "_rebuild_parameter")
)
FLOAT = Global("torch", "FloatStorage")
OK = Storage(np.zeros(4, np.float32))


def command(canary):
    return f"{sys.executable} -c \"open('{canary}', 'w')\""


def calls(function, argument):
    return lambda protocol: torch_writer.pickled({"w": Call(function, (argument,))}, protocol)[0]


def payloads(canary):
    """Makes pickles that write the file `canary` when the standard library loads them."""
    text = command(canary).encode()
    quoted = b"X" + len(text).to_bytes(4, "little") + text
    code = f"open({str(canary)!r}, 'w')"
    system = calls(Global("os", "system"), command(canary))
    found = {f"os.system, protocol {protocol}": system(protocol) for protocol in (2, 3, 4)}
    found |= {
        "os.system, protocol 0": b"\x80\x02" + system(0),
        "eval": calls(Global("builtins", "eval"), code)(2),
        "exec of Python 2": calls(Global("__builtin__", "eval"), code)(2),
        "NumPy": torch_writer.pickled(Call(Global("numpy", "memmap"), (str(canary), "uint8", "w+", 0, (1,))))[0],
        "attribute": torch_writer.pickled(Call(Global("pathlib", "Path.touch"), (pathlib.Path(canary),)), 4)[0],
        "INST": b"\x80\x02(" + quoted + b"ios\nsystem\n.",
        "OBJ": b"\x80\x02(cos\nsystem\n" + quoted + b"o.",
        "EXT1": b"\x80\x02\x82\xe9" + quoted + b"\x85R.",
        "EXT2": b"\x80\x02\x83\xe9\x00" + quoted + b"\x85R.",
        "EXT4": b"\x80\x02\x84\xe9\x00\x00\x00" + quoted + b"\x85R.",
        "memo": b"\x80\x02cos\nsystem\nq\x000h\x00" + quoted + b"\x85R.",
    }
    found["NEWOBJ"] = found["NumPy"].replace(b"R.", b"\x81.")
    return found


@pytest.fixture
def extension():
    """Adds a copyreg code for os.system, which the standard library caches after its first use."""
    copyreg.add_extension(os.system.__module__, "system", 0xE9)
    yield
    copyreg.remove_extension(os.system.__module__, "system", 0xE9)


@pytest.mark.parametrize("name", payloads("x"))
def test_nothing_is_called(refuse, tmp_path, extension, name):
    canary = tmp_path / "canary"
    payload = payloads(canary)[name]
    pickle.loads(payload)
    assert canary.exists(), "the payload does not work"
    canary.unlink()
    messages = [refuse(torch_writer.legacy_file(payload)), refuse(torch_writer.zip_file(payload)), refuse(payload)]
    messages += [refuse(pickle.dumps(torch_writer.MAGIC, 2) + payload)]
    assert not canary.exists()
    assert all("it asks for '" in message or "its pickle uses " in message for message in messages)


@pytest.mark.parametrize(
    "function",
    [
        Global("torch.storage", "_load_from_bytes"),
        Global("torch", "load"),
        Global("torch.nn.modules.linear", "Linear"),
        Global("torch", "ComplexFloatStorage"),
        Global("numpy.core.multiarray", "_reconstruct"),
        Global("collections", "OrderedDict.fromkeys"),
        Global("collections", "namedtuple"),
        Global("a\tb", "c\x1b[1m"),
        Global("a" * 10_000, "b"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_globals_are_named(refuse, format_, function, protocol):
    message = refuse(saved({"w": tensor(KERNEL), "x": function}, format_, protocol))
    assert "it asks for " + repr(f"{function.module}.{function.name}")[:100] in message and len(message) < 500


@pytest.mark.parametrize(
    "odd",
    [
        Call(V2, ()),
        Call(V2, (OK, 0, (4,), (1,))),
        Call(V2, (3, 0, (4,), (1,), False, {})),
        Call(V2, (OK, "0", (4,), (1,), False, {})),
        Call(V2, (OK, 0, [4], (1,), False, {})),
        Call(V2, (OK, 0, (4,), 1, False, {})),
        view(OK, 0, (4,), (1,), {"neg": True}),
        Call(V1, (OK, 0, (4,), (1,), False)),
        Call(PARAMETER, (OK, True, {})),
        Call(Global("torch", "Size"), (3,)),
        Call(Global("torch", "FloatStorage"), (3,)),
        Call(Global("collections", "OrderedDict"), (3,)),
        Call(Global("collections", "OrderedDict"), ({}, {})),
    ],
)
def test_odd_arguments(refuse, format_, odd):
    message = refuse(saved({"w": tensor(KERNEL), "x": odd}, format_))
    assert message.endswith("with arguments that torch does not give it")


class Phase(enum.Enum):
    LAST = 2


class Bag(dict):
    """Stands for the dictionaries with attributes that configs and Lightning use."""


def about_training(canary):
    """Makes what checkpoints hold beside their tensors; the last one harms who calls it."""
    bag = Bag(lr=0.1)
    bag.frozen = True
    return {
        "args": argparse.Namespace(output=pathlib.PurePosixPath("a/b"), betas=(0.9, 0.99), phase=Phase.LAST, model=Bag),
        "best": np.float64(0.5),
        "scores": np.arange(3),
        "started": datetime.datetime(2020, 1, 2),
        "history": collections.defaultdict(list, loss=[1.0]),
        "counts": collections.Counter("aab"),
        "milestones": {3, 5},
        "frozen": frozenset("ab"),
        "optimizer": functools.partial(int, base=2),
        "hyper_parameters": bag,
        "config": Call(Global("of_no_module", "Config"), ("x", [1])),
        "dtype": Global("torch", "float32"),
        "process": Call(Global("subprocess", "Popen"), ([sys.executable, "-c", f"open('{canary}', 'w')"],)),
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_trained_a_checkpoint_is_not_read(read, format_, protocol, tmp_path):
    found = read(saved({**about_training(tmp_path / "canary"), "state_dict": {"w": tensor(KERNEL)}}, format_, protocol))
    np.testing.assert_array_equal(found["w"], KERNEL)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", about_training(""))
def test_what_is_not_read_is_no_weight(refuse, format_, name, tmp_path):
    """An object among the tensors, or in their place, may hold weights that would be missing."""
    other = about_training(tmp_path / "canary")[name]
    for value in ({"w": tensor(KERNEL), "x": other}, other, {"model": other}):
        assert "it asks for '" in (said := refuse(saved(value, format_, 4))) or "frozenset" in said
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("pairs", [[["a", 1, 2]], [3], [[("a",), 2]]])
def test_odd_dictionaries(refuse, pairs):
    refuse(saved({"w": tensor(KERNEL), "x": Call(Global("collections", "OrderedDict"), (pairs,))}, "zip"))


@pytest.mark.parametrize(
    "id_",
    [
        ("storage",),
        ("module", FLOAT, "0", "cpu", 4, None),
        ("storage", Global("torch", "Size"), "0", "cpu", 4, None),
        ("storage", "torch.FloatStorage", "0", "cpu", 4, None),
        ("storage", FLOAT, 0, "cpu", 4, None),
        ("storage", FLOAT, "0", "cpu", -4, None),
        ("storage", FLOAT, "0", "cpu", "4", None),
        ("storage", FLOAT, "0", "cpu", 4, ("1", 0, 4)),  # a view of a storage, as before torch 0.4
    ],
)
def test_odd_storages(refuse, format_, id_):
    message = refuse(saved({"w": view(Storage(OK.array, id_), 0, (0,), (1,))}, format_))
    assert message.endswith("its pickle refers to something other than a storage")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"ctorch._utils\n_rebuild_tensor_v2\n}(X\x0c\x00\x00\x00__defaults__)ub", "Global in place of dict"),
        (b"ccollections\nOrderedDict\n}b", "Global in place of dict"),
        (b"]}b", "list in place of dict"),
        (b"ccollections\nOrderedDict\n]R", "list in place of tuple"),
        (b"X\x01\x00\x00\x00a)R", "str in place of Global"),
        (b"K\x01(Ne", "int in place of list"),
        (b"K\x01Na", "int in place of list"),
        (b"K\x01Q", "int in place of tuple"),
        (b"]]\x93", "list in place of str"),
        (b"(X\x01\x00\x00\x00a1", "uses POP_MARK, which no state dict needs"),
        (b"}(]]u", "a dictionary with a list for a key"),
        (b"}(]u", "shorter"),
        *(
            (body, "takes what was never put")
            for body in (b"", b"h\x07", b"t", b"u", b"\x85", b"N(\x85", b"NNs", b"q\x00")
        ),
    ],
)
def test_damaged_pickles(refuse, body, expected):
    assert expected in refuse(torch_writer.zip_file(b"\x80\x02" + body + b"."))


def test_two_types_of_one_storage(refuse, format_):
    ids = [("storage", Global("torch", f"{name}Storage"), "0", "cpu", 4) for name in ("Float", "Int")]
    state = {str(id_): view(Storage(OK.array, id_ + (None,) * (format_ == "legacy")), 0, (4,), (1,)) for id_ in ids}
    assert "storage '0' is of two types or sizes" in refuse(saved(state, format_))


@pytest.mark.full
def test_deep_nesting_is_no_crash(tmp_path):
    """The test has a process of its own, since a crash would end this one."""
    deep = b")" + b"\x85" * 200_000
    (tmp_path / "key.pth").write_bytes(torch_writer.zip_file(b"\x80\x02}" + deep + b"K\x01s."))
    (tmp_path / "keys.pth").write_bytes(torch_writer.legacy_file(b"\x80\x02}.\x80\x02]" + deep + b"a."))
    program = (
        "import pathlib, sys\nfrom big_distill.errors import RunError\n"
        "from big_distill.weights.pretrained import formats\n"
        "for path in sys.argv[1:]:\n"
        "  try: formats.read(pathlib.Path(path))\n"
        "  except RunError: print('refused')\n"
    )
    command = [sys.executable, "-c", program, tmp_path / "key.pth", tmp_path / "keys.pth"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "refused\n" * 2

"""Checks state dicts of PyTorch: right ones are read bit for bit, and wrong ones do no harm.

torch.save (PyTorch 2.13) wrote `torch_legacy.pth` and `torch_zip.pth` from what `test_files_of_pytorch` expects.
"""

import collections
import pathlib
import pickle
import re
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_writer
from torch_writer import STORAGES, Call, Global, Storage, saved, tensor, view

from big_distill.errors import RunError
from big_distill.weights.pretrained import formats

HERE = pathlib.Path(__file__).parent
OK = Storage(np.zeros(4, np.float32))
KERNEL = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7.25


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes(), name


def test_files_of_pytorch(format_):
    found = formats.read(HERE / f"torch_{format_}.pth").arrays
    base = np.arange(12, dtype=np.float32).reshape(3, 4) / 8
    expected = {
        "kernel": base[:, 1:].T,
        "base": base,
        "scale": np.array([1.5, -2, np.inf], ml_dtypes.bfloat16),
        "num_batches_tracked": np.array(2**40 + 1),
        "mask": np.array([[True], [False]]),
    }
    assert_same(found, expected)
    assert np.shares_memory(found["kernel"], found["base"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_type_and_protocol(read, format_, protocol):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (3, 5)).astype(dtype) for name, dtype in STORAGES.items()}
    arrays |= {"nan": np.array([np.nan, -0.0, 1e-40], np.float32), "scalar": np.array(7), "none": np.zeros((0, 3))}
    state = collections.OrderedDict((name, tensor(array)) for name, array in arrays.items())
    state._metadata = collections.OrderedDict(version=1)
    assert_same(read(saved(state, format_, protocol)), arrays)


def test_bools_are_0_or_1(read, format_):
    found = read(saved({"w": tensor(np.array([0, 1, 2], np.uint8).view(bool))}, format_))
    assert found["w"].tobytes() == b"\x00\x01\x01"


@pytest.mark.parametrize("byte_order", [None, "little", "big"])
def test_byte_orders(read, byte_order):
    arrays = {name: np.arange(2).astype(dtype) for name, dtype in STORAGES.items()}
    root, storages = torch_writer.pickled({name: tensor(array) for name, array in arrays.items()})
    assert_same(read(torch_writer.zip_file(root, storages, byte_order)), arrays)


def test_views_of_one_storage(read, format_):
    whole = np.arange(30, dtype=np.float32)
    storage = Storage(whole)
    state = {
        "all": view(storage, 0, (5, 6), (6, 1)),
        "t": view(storage, 0, (6, 5), (1, 6)),
        "part": view(storage, 7, (2, 3), (12, 2)),
        "last": view(storage, 29, (), ()),
        "row": view(storage, 24, (1, 6), (999, 1)),
        "wide": view(storage, 3, (2, 4), (0, 1)),
    }
    matrix = whole.reshape(5, 6)
    expected = {
        "all": matrix,
        "t": matrix.T,
        "part": matrix[1::2, 1::2][:2],
        "last": whole[29],
        "row": matrix[4:],
        "wide": np.stack([whole[3:7]] * 2),
    }
    found = read(saved(state, format_))
    assert_same(found, expected)
    assert all(np.shares_memory(found["all"], array) and not array.flags.writeable for array in found.values())


def test_only_tensors_are_kept(read, format_):
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (tensor(KERNEL), True, collections.OrderedDict()))
    state = {"module.kernel": parameter, "module.extra": b"bytes", 3: tensor(KERNEL)}
    rest = {"epoch": 3, "lr": 0.1, "big": -(2**70), "rng": tensor(np.zeros(9, np.uint8)), "x": [None, (1, True), {}]}
    rest |= {"size": Call(Global("torch", "Size"), ((1, 2),)), "device": Call(Global("torch", "device"), ("cuda", 0))}
    for name in ("state_dict", "model_state_dict", "model"):
        assert_same(read(saved({**rest, name: state}, format_, 4)), {"kernel": KERNEL})
    assert_same(read(saved({"model": {"state_dict": state}}, format_, 4)), {"kernel": KERNEL})
    assert_same(read(saved(state | {"head": tensor(KERNEL)}, format_, 4)), {"module.kernel": KERNEL, "head": KERNEL})


@pytest.mark.parametrize("averaged", ["state_dict_ema", "model_ema"])
def test_averaged_weights_win_and_are_said(tmp_path, averaged):
    """timm's `load_state_dict` prefers them, too, unless they are None."""
    path, own = tmp_path / "w.pth", {"kernel": tensor(KERNEL)}
    both = {"state_dict": own, averaged: {"module.kernel": tensor(KERNEL + 1), "n_averaged": tensor(np.int64([7]))}}
    path.write_bytes(saved(both, "zip"))
    found = formats.read(path)
    assert_same(found.arrays, {"kernel": KERNEL + 1})
    assert found.remark == f"the averaged weights (EMA) of its {averaged} are used, not those of state_dict"
    path.write_bytes(saved({"state_dict": own, averaged: None}, "zip"))
    assert_same(formats.read(path).arrays, {"kernel": KERNEL})
    assert not formats.read(path).remark


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.module."])
def test_prefixes_of_wrappers_are_left_out(read, tmp_path, prefix):
    """They are left out in each format, if all names have them."""
    named = {f"{prefix}a.model.w": KERNEL, f"{prefix}b": KERNEL}
    plain = {"a.model.w": KERNEL, "b": KERNEL}
    assert_same(read(saved({name: tensor(array) for name, array in named.items()}, "zip")), plain)
    safetensors.numpy.save_file(named, tmp_path / "w.safetensors")
    found = formats.read(tmp_path / "w.safetensors").arrays
    assert_same(dict(sorted(found.items())), plain)
    kept = {**named, "head": KERNEL}
    assert read(saved({name: tensor(array) for name, array in kept.items()}, "zip")).keys() == kept.keys()


@pytest.mark.parametrize("name", ["model_best.pth.tar", "checkpoint.tar", "last.ckpt", "epoch=3-step=12.ckpt"])
def test_other_suffixes_of_torch(tmp_path, name):
    (tmp_path / name).write_bytes(saved({"state_dict": {"model.w": tensor(KERNEL)}}, "zip"))
    assert_same(formats.read(tmp_path / name).arrays, {"w": KERNEL})
    (tmp_path / name).write_bytes(b"ustar")
    with pytest.raises(
        RunError, match=rf"{re.escape(name)} is not a weight file \(.*it does not start as files of torch"
    ):
        formats.read(tmp_path / name)


def test_as_python_2_wrote_it(read):
    """It has str as BINSTRING, items as an argument of OrderedDict, and torch 0.3's function without hooks."""
    root = torch_writer.pickled(
        Call(
            Global("collections", "OrderedDict"),
            ([["w", Call(Global("torch._utils", "_rebuild_tensor"), (Storage(KERNEL), 0, (24,), (1,)))]],),
        )
    )[0].replace(b"X\x01\x00\x00\x00w", b"T\x01\x00\x00\x00w")
    assert_same(read(torch_writer.zip_file(root, [KERNEL])), {"w": KERNEL.reshape(-1)})


@pytest.mark.parametrize("value", [3, [tensor(KERNEL)], tensor(KERNEL), {"w": 3}, {"a": {"w": tensor(KERNEL)}}, {}])
def test_without_tensors(refuse, format_, value):
    assert "holds no dictionary of tensors" in refuse(saved(value, format_))


def test_what_holds_the_tensors_is_named(refuse, format_):
    state = {"net": {"w": tensor(KERNEL)}, "ema": {"w": tensor(KERNEL)}, "epoch": 3, "optimizer": {"lr": 0.1}}
    assert "no dictionary of tensors, but has some under 'net', 'ema': save one of" in refuse(saved(state, format_))


def test_a_dictionary_in_itself(refuse, format_):
    state = {}
    state["state_dict"] = state["model"] = state
    assert "holds no dictionary of tensors" in refuse(saved(state, format_))


def test_no_file(tmp_path):
    with pytest.raises(RunError, match=r"none.pth is not a weight file \(.pth\), or it is damaged: .*No such file"):
        formats.read(tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(RunError, match=r"folder.pth is not a weight file .*Is a directory"):
        formats.read(tmp_path / "folder.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (25,), (1,)),
        (1, (24,), (1,)),
        (24, (1,), (1,)),
        (0, (4, 6), (7, 1)),
        (0, (2, 2), (1, 23)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (-2, -3), (1, 1)),
        (0, (2,), (1, 1)),
        (0, (2,), ()),
        (0, (5, 5), (0, 0)),  # more numbers than the storage has
        (0, (2**40,), (0,)),
        (0, (2**62, 4), (0, 0)),
        (2**70, (1,), (1,)),
        (0, (True,), (1,)),
        (0, ("2",), (1,)),
        (0, (1,) * 65, (1,) * 65),
        (0, (0, 2**47, 2**47), (1, 1, 1)),
    ],
)
def test_views_beyond_their_storage(refuse, format_, offset, shape, strides):
    message = refuse(
        saved({"w": tensor(KERNEL), "x": view(Storage(KERNEL.reshape(-1)), offset, shape, strides)}, format_)
    )
    assert "'x'" in message or "array is too big" in message


def test_sizes_are_checked_before_memory_is_claimed(refuse, format_):
    storage = Storage(np.zeros(4, np.float32), ("storage", Global("torch", "FloatStorage"), "0", "cpu", 2**40, None))
    huge = [
        saved({"w": view(storage, 0, (2**40,), (1,))}, format_),
        saved({"w": view(OK, 0, (2**40,), (0,))}, format_),
        torch_writer.zip_file(b"\x80\x02Nr\xff\xff\xff\xff."),  # memo[2**32 - 1]
        torch_writer.legacy_file(b"\x80\x04\x8d" + (2**36).to_bytes(8, "little") + b"a."),  # a string
        torch_writer.zip_file(b"\x80\x04\x8d" + (2**36).to_bytes(8, "little") + b"a."),
        torch_writer.legacy_file(b"\x80\x02\x8b\xff\xff\xff\x7f."),  # an integer
    ]
    tracemalloc.start()
    try:
        for data in huge:
            refuse(data)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_wrong_files(refuse):
    assert "does not start as" in refuse(b"hello")
    assert "empty" in refuse(b"")
    assert "does not start as" in refuse(pickle.dumps({"w": 3}, 2))
    assert "0 data.pkl" in refuse(torch_writer.zip_file(b"", folder="a").replace(b"data.pkl", b"data.npy"))
    assert "'middle', expected little or big" in refuse(torch_writer.zip_file(b"N.", byte_order="middle"))


def test_truncated_files(refuse, format_):
    whole = saved({"w": tensor(KERNEL), "v": tensor(KERNEL)}, format_)
    for length in (1, 4, 20, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        message = refuse(whole[:length])
    assert format_ == "zip" or f"it is truncated: {len(whole) - 1} bytes of {len(whole)}" in message


def test_storages_that_are_not_what_the_pickle_says(refuse):
    root, (array,) = torch_writer.pickled({"w": tensor(KERNEL)}, legacy=True)
    assert "storage '0' holds 25 numbers, not 24" in refuse(
        torch_writer.legacy_file(root, [np.append(array, array[:1])])
    )
    assert "list of storages" in refuse(torch_writer.legacy_file(root, []))
    assert "storage '0' is missing" in refuse(torch_writer.zip_file(root, []))
    assert "storage '0' is of 92 bytes, not 96" in refuse(torch_writer.zip_file(root, [array[1:]]))
    damaged = torch_writer.zip_file(root, [array]).replace(array.tobytes(), array[::-1].tobytes())
    assert "CRC" in refuse(damaged)


def test_zip_bombs(refuse, tmp_path):
    root, storages = torch_writer.pickled({"w": tensor(np.zeros(1 << 20, np.float32))})
    assert "compressed" in refuse(torch_writer.zip_file(root, storages, compression=zipfile.ZIP_DEFLATED))
    path = tmp_path / "overlap.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", root)
        archive.writestr("a/data/0", storages[0].tobytes())
        archive.filelist.extend(archive.filelist[-1:] * 100)
    assert "announced as larger than the file" in refuse(path.read_bytes())

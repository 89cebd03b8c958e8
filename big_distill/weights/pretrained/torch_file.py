"""Reads state dicts of PyTorch without PyTorch: files of torch.save, in the present format (zip) and the one before.

`torch_pickle` reads what a file claims to hold. This module compares that with what the file holds, and makes the
arrays.
"""

from __future__ import annotations

import io
import math
import mmap
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from big_distill.weights.pretrained import torch_pickle
from big_distill.weights.pretrained.torch_pickle import Storage, Tensor, Unread, unwanted

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_BYTE_ORDERS = {b"little": "<", b"big": ">"}
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict")  # before the others, as timm's loader does
_WRAPPERS = (*_AVERAGED, "state_dict", "model_state_dict", "model")

LoadFn = Callable[[Storage], np.ndarray]  # returns a storage's bits as unsigned integers [N]


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """Reads the tensors of a state dict, or of a checkpoint with one under `state_dict` or `model`.

    Weights that were averaged while they were trained, under `state_dict_ema` or `model_ema`, win.

    Returns:
      Arrays by the tensors' names, in the file's order, and a remark if the averaged weights were taken, else "". Do
      not write to the arrays: they share memory where the tensors shared a storage. Entries that are plain values are
      left out.

    Raises:
      Exception: of many kinds. The file is not one of torch.save, or is damaged; it asks for a class or function that
        no state dict needs (nothing is imported or called); a tensor does not fit into its storage; it holds no
        tensors.
    """
    with path.open("rb") as file:
        root, load = _open_zip(file) if file.peek(4).startswith(_ZIP) else _open_legacy(file)
        tensors, remark = _tensors(root)
        storages = {storage: load(storage) for storage in {tensor.storage for tensor in tensors.values()}}
        return {name: _array(name, tensor, storages[tensor.storage]) for name, tensor in tensors.items()}, remark


def _open_legacy(file: BinaryIO) -> tuple[Any, LoadFn]:
    """Opens five pickles (magic number, protocol, system, value, keys), then each storage: its length, its numbers."""
    data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # Any: typeshed takes no mmap for a file
    starts = data[:1] == _PICKLE and torch_pickle.load(data)[0] == _LEGACY_MAGIC
    if not starts or torch_pickle.load(data)[0] != _LEGACY_PROTOCOL:
        raise ValueError("it does not start as files of torch.save do")
    torch_pickle.load(data)  # names a byte order, but the storages are always little-endian
    root, storages = torch_pickle.load(data)
    positions = _find_storages(data, torch_pickle.load(data)[0], storages)

    def load(storage: Storage) -> np.ndarray:
        start = positions[storage.key]
        return _bits(data[start : start + storage.num_bytes], storage.dtype)

    return root, load


def _find_storages(data: Any, keys: Any, storages: dict[str, Storage]) -> dict[str, int]:
    """Finds the position at which the numbers of each storage start."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != storages.keys():
        raise ValueError("its list of storages does not name those that its tensors use")
    end = data.tell() + sum(8 + storages[key].num_bytes for key in keys)
    if end > len(data):
        raise ValueError(f"it is truncated: {len(data)} bytes of {end}")
    positions = {}
    for key in keys:
        (num_elements,) = struct.unpack("<q", data.read(8))
        if num_elements != storages[key].num_elements:
            raise ValueError(f"storage {key!r:.100} holds {num_elements} numbers, not {storages[key].num_elements}")
        positions[key] = data.tell()
        data.seek(storages[key].num_bytes, io.SEEK_CUR)
    return positions


def _open_zip(file: BinaryIO) -> tuple[Any, LoadFn]:
    """Opens FOLDER/data.pkl, FOLDER/data/KEY for each storage and, from PyTorch 2.0 on, FOLDER/byteorder."""
    archive = zipfile.ZipFile(file)
    members = _members(archive, file.seek(0, io.SEEK_END))
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it is a zip file with {len(pickles)} data.pkl in place of one")
    folder = pickles[0].removesuffix("data.pkl")
    root, _ = torch_pickle.load(io.BytesIO(archive.read(pickles[0])))
    byte_order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
    if byte_order not in _BYTE_ORDERS:
        raise ValueError(f"its byte order is {byte_order!r:.100}, expected little or big")

    def load(storage: Storage) -> np.ndarray:
        info = members.get(f"{folder}data/{storage.key}")
        if info is None or info.file_size != storage.num_bytes:
            found = "missing" if info is None else f"of {info.file_size} bytes, not {storage.num_bytes}"
            raise ValueError(f"storage {storage.key!r:.100} is {found}")
        return _bits(archive.read(info), storage.dtype, _BYTE_ORDERS[byte_order])

    return root, load


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Lists the members by name; raises ValueError if reading each once could take more memory than the file has."""
    infos = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size for info in infos):
        raise ValueError("its contents are compressed, which torch.save never does")
    if sum(info.file_size for info in infos) > size:
        raise ValueError("its contents are announced as larger than the file")
    return {info.filename: info for info in infos}


def _bits(data: bytes, dtype: np.dtype, order: str = "<") -> np.ndarray:
    """Returns unsigned integers of the dtype's size and the machine's byte order; 0 or 1 for a bool."""
    unit = f"u{dtype.itemsize}"
    bits = np.frombuffer(data, order + unit).astype(unit, copy=False)
    return (bits != 0).view(unit) if dtype == np.bool_ else bits


def _tensors(root: Any) -> tuple[dict[str, Tensor], str]:
    """Finds the dictionary of tensors, inside those that wrap it; returns it and the remark of `read`."""
    remark = ""
    while isinstance(root, dict) and (inner := [name for name in _WRAPPERS if _is_filled(root.get(name))]):
        if inner[0] in _AVERAGED:
            others = "".join(f", not those of {name}" for name in inner[1:] if name not in _AVERAGED)
            remark = f"the averaged weights (EMA) of its {inner[0]} are used{others}"
        root = root.pop(inner[0])  # taken out, because a dictionary may hold itself
    entries = root if isinstance(root, dict) else {"": root}
    tensors = {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if unread := [value.name for value in entries.values() if isinstance(value, Unread)]:
        raise ValueError(unwanted(unread[0]))
    if not tensors or entries is not root:
        inner = [name for name, value in entries.items() if _is_filled(value) and Tensor in map(type, value.values())]
        within = f", but has some under {', '.join(map(repr, inner))[:100]}: save one of them alone" if inner else ""
        raise ValueError(f"it holds no dictionary of tensors{within}")
    return tensors, remark


def _is_filled(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _array(name: str, tensor: Tensor, bits: np.ndarray) -> np.ndarray:
    """Makes the view; raises ValueError if it reaches beyond the storage, or has more numbers than the storage."""
    shape, strides, itemsize = tensor.shape, tensor.strides, tensor.storage.dtype.itemsize
    numbers = (tensor.offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > 64 or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise ValueError(f"tensor {name!r:.100} has an impossible shape, strides or offset")
    num_elements = math.prod(shape)
    end = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1
    if num_elements and (num_elements > bits.size or end > bits.size):
        raise ValueError(f"tensor {name!r:.100} is larger than its storage of {bits.size} numbers")
    if not num_elements:
        return np.empty(shape, tensor.storage.dtype)
    return np.ndarray(shape, tensor.storage.dtype, bits, tensor.offset * itemsize, [n * itemsize for n in strides])

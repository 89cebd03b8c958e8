"""Writes files as torch.save does, without torch."""

import collections
import dataclasses
import io
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": ml_dtypes.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass(frozen=True)
class Global:
    """Pickles as a class or function of that name, which need not exist."""

    module: str
    name: str

    def __call__(self, *_):
        raise AssertionError("only the pickler asks whether it can be called")


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """Pickles as a call of `function`."""

    function: Any
    arguments: Any

    def __reduce__(self):
        return self.function, self.arguments


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """Pickles as a reference to `array`; `id_`, if given, replaces the reference."""

    array: np.ndarray
    id_: Any = None

    def reference(self, key, legacy):
        name = next(name for name, dtype in STORAGES.items() if dtype == self.array.dtype)
        reference = ("storage", Global("torch", f"{name}Storage"), key, "cpu", self.array.size)
        return self.id_ or reference + (None,) * legacy


class Pickler(pickle._Pickler):
    """Pickles `Global` and `Storage`, and collects the storages under keys "0", "1", ..."""

    def __init__(self, file, protocol=2, legacy=False):
        super().__init__(file, protocol)
        self.legacy, self.storages = legacy, []

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        if not any(obj is storage for storage in self.storages):
            self.storages.append(obj)
        return obj.reference(str(self.storages.index(obj)), self.legacy)

    def save(self, obj, save_persistent_id=True):
        if not isinstance(obj, Global):
            return super().save(obj, save_persistent_id)
        if self.proto < 4:
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj.module)
            super().save(obj.name)
            self.write(pickle.STACK_GLOBAL)


def view(storage, offset, shape, strides, *more):
    """Makes a tensor; offset and strides are in elements."""
    arguments = (storage, offset, tuple(shape), tuple(strides), False, collections.OrderedDict(), *more)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def tensor(array):
    """Makes a tensor with a storage of its own."""
    strides = [stride // array.itemsize for stride in array.strides]
    return view(Storage(array.reshape(-1)), 0, array.shape, strides)


def pickled(obj, protocol=2, legacy=False):
    """Returns the pickle, and the arrays that it refers to."""
    file = io.BytesIO()
    pickler = Pickler(file, protocol, legacy)
    pickler.dump(obj)
    return file.getvalue(), [storage.array for storage in pickler.storages]


def legacy_file(root, storages=()):
    """Puts the format up to PyTorch 1.5 around a pickle."""
    info = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    keys = [str(i) for i in range(len(storages))]
    head = b"".join(pickle.dumps(obj, 2) for obj in (MAGIC, 1001, info))
    tail = b"".join(array.size.to_bytes(8, "little") + array.tobytes() for array in storages)
    return head + root + pickle.dumps(keys, 2) + tail


def zip_file(root, storages=(), byte_order=None, compression=zipfile.ZIP_STORED, folder="archive"):
    """Puts the format since PyTorch 1.6 around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", root)
        if byte_order:
            archive.writestr(f"{folder}/byteorder", byte_order)
        for key, array in enumerate(storages):
            bits = array.view(f"u{array.itemsize}")
            archive.writestr(f"{folder}/data/{key}", (bits.byteswap() if byte_order == "big" else bits).tobytes())
        archive.writestr(f"{folder}/version", "3\n")
    return file.getvalue()


def saved(obj, format_, protocol=2):
    """Makes a file of torch.save(obj); `format_` is "legacy" or "zip"."""
    root, storages = pickled(obj, protocol, format_ == "legacy")
    return legacy_file(root, storages) if format_ == "legacy" else zip_file(root, storages)

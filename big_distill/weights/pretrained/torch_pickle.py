"""Reads PyTorch's pickles with a machine that can build dictionaries of tensors, and can do nothing else.

The standard library's unpickler is not safe enough, even if its `find_class` is guarded: a file can still set
attributes (BUILD), take objects from copyreg's cache (EXT1) and claim gigabytes with a few bytes (LONG_BINPUT). A state
dict needs some forty opcodes and a dozen names. This module never imports or calls anything because a file says so.

A checkpoint also holds what trained it: an argparse.Namespace, paths, NumPy's numbers. Objects of such classes are read
as `Unread`, which keeps nothing of them. By convention a class has a name in capitals; other names are functions, for
which only a file that was made to harm asks, and they are refused.
"""

from __future__ import annotations

import dataclasses
import pickle
import pickletools
import re
from collections.abc import Iterable
from typing import IO, Any

import ml_dtypes
import numpy as np

DTYPES = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_FUNCTIONS = {
    *("collections.OrderedDict", "torch.Size", "torch.device"),
    *(f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "parameter")),
}
_CLASSES = re.compile(  # in small letters, or functions that make objects of plain data
    r"(copyreg|copy_reg)\._reconstructor|collections\.(defaultdict|deque)|datetime\.(date|datetime|timedelta)"
    r"|numpy\.(dtype|ndarray|_?core\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer))|_codecs\.encode"
    r"|(builtins|__builtin__)\.(object|set|frozenset|bytearray|complex|x?range|slice|dict|list|tuple)"
    r"|(builtins|__builtin__)\.(int|long|float|bool|str|unicode|bytes)"
    r"|functools\.partial|torch\.(bfloat|float|complex|u?int|bool)\d*"
)
_IGNORED = {"PROTO", "FRAME"}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclasses.dataclass(frozen=True)
class Storage:
    """Describes numbers that a file holds under a key."""

    key: str
    dtype: np.dtype
    num_elements: int

    @property
    def num_bytes(self) -> int:
        """Returns the number of bytes in the file."""
        return self.num_elements * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Describes a view of a storage; offset and strides are in elements. Nothing has checked yet that it fits."""

    storage: Storage
    offset: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


@dataclasses.dataclass(eq=False)
class Unread:
    """Stands for a class of that name, or for an object of it. Nothing of it was read, made or called."""

    name: str


def load(file: IO[bytes]) -> tuple[Any, dict[str, Storage]]:
    """Reads one pickle from the file's position on, and leaves the position behind it.

    Args:
      file: in memory or mapped; a read beyond the end of a plain file would first claim the memory.

    Returns:
      The value, in which a tensor is a `Tensor`; and all storages by their keys.

    Raises:
      pickle.UnpicklingError: the pickle needs what no state dict needs, or is damaged.
      ValueError: the same, raised by pickletools.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        return machine.pop(object), machine.storages
    except (IndexError, KeyError) as error:
        raise pickle.UnpicklingError("its pickle is damaged: it takes what was never put") from error


class _Machine:
    """Holds the stack, the memo and the storages of one pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stack under each mark
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self, expected: type) -> Any:
        return _check(self.stack.pop(), expected)

    def pop_marked(self) -> list[Any]:
        """Pops all above the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, expected: type) -> Any:
        return _check(self.stack[-1], expected)

    def fill(self, expected: type, items: Iterable[Any]) -> None:
        """Adds items to the list or dictionary on top, or drops them if an `Unread` is there."""
        if isinstance(self.top(object), Unread):
            return
        if expected is dict:
            _update(self.top(dict), items)
        else:
            self.top(list).extend(items)

    def step(self, name: str, argument: Any) -> None:
        """Carries out one opcode."""
        if name in _LITERALS:
            self.push(argument)
        elif name in _CONSTANTS:
            self.push(_CONSTANTS[name])
        elif name in _EMPTY:
            self.push(_EMPTY[name]())
        elif name in _TUPLES:
            self.push(tuple(self.stack.pop() for _ in range(_TUPLES[name]))[::-1])
        elif name not in _IGNORED:
            self._step(name, argument)

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "TUPLE":
                self.push(tuple(self.pop_marked()))
            case "EMPTY_SET":
                self.push(Unread("set"))
            case "FROZENSET":
                self.pop_marked()
                self.push(Unread("frozenset"))
            case "APPEND":
                self.fill(list, [self.pop(object)])
            case "APPENDS" | "ADDITEMS":
                self.fill(list, self.pop_marked())
            case "SETITEM":
                value, key = self.pop(object), self.pop(object)
                self.fill(dict, [(key, value)])
            case "SETITEMS":
                items = self.pop_marked()
                self.fill(dict, zip(items[::2], items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top(object)
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top(object)
            case "BINGET" | "LONG_BINGET":
                self.push(self.memo[argument])
            case "GLOBAL":
                self.push(_global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                attribute, module = self.pop(str), self.pop(str)
                self.push(_global(f"{module}.{attribute}"))
            case "BINPERSID":
                self.push(self._storage(self.pop(tuple)))
            case "REDUCE":
                arguments = self.pop(tuple)
                if not isinstance(self.top(object), Unread):
                    self.push(_call(self.pop(_Global).name, arguments))
            case "NEWOBJ":
                self.pop(tuple)
                self.top(Unread)
            case "NEWOBJ_EX":
                self.pop(dict), self.pop(tuple)
                self.top(Unread)
            case "BUILD":  # an OrderedDict's attributes: `_metadata`, the versions of the modules
                self.pop(object)
                self.fill(dict, [])
            case "STOP":
                pass
            case _:
                raise pickle.UnpicklingError(f"its pickle uses {name}, which no state dict needs")

    def _storage(self, id_: tuple[Any, ...]) -> Storage:
        match id_:
            case ("storage", _Global(name=name), str(key), _, int(num_elements), *view) if (
                name in DTYPES and num_elements >= 0 and not any(view)
            ):
                storage = Storage(key, DTYPES[name], num_elements)
            case _:
                raise pickle.UnpicklingError("its pickle refers to something other than a storage")
        if self.storages.setdefault(key, storage) != storage:
            raise pickle.UnpicklingError(f"its storage {key!r:.100} is of two types or sizes")
        return storage


def _check(value: Any, expected: type) -> Any:
    if not isinstance(value, expected):
        raise pickle.UnpicklingError(
            f"its pickle is damaged: {type(value).__name__.strip('_')} in place of {expected.__name__.strip('_')}"
        )
    return value


def _update(target: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
    for key, value in pairs:
        # No tuples: the hash of one that is nested deeply enough overflows the interpreter's stack.
        if not isinstance(key, str | int | float | bytes | Unread | None):
            raise pickle.UnpicklingError(f"it has a dictionary with a {type(key).__name__} for a key")
        target[key] = value


def unwanted(name: str) -> str:
    """Says that a file asks for a class or function of that name."""
    return (
        f"it asks for {name!r:.100}, which no state dict needs; nothing was called; "
        "save the tensors alone: torch.save(model.state_dict(), path)"
    )


def _global(name: str) -> _Global | Unread:
    """Returns the name alone; the object of that name is never looked up."""
    if name in DTYPES or name in _FUNCTIONS:
        return _Global(name)
    in_capitals = name.rpartition(".")[2].lstrip("_")[:1].isupper()
    if in_capitals or _CLASSES.fullmatch(name):
        return Unread(name)
    raise pickle.UnpicklingError(unwanted(name))


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """Returns the value that the function of that name would return for the arguments that torch gives it."""
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list() as pairs,):  # as Python 2 wrote it
            ordered: dict[Any, Any] = {}
            _update(ordered, pairs)
            return ordered
        case "torch._utils._rebuild_tensor", (Storage() as storage, int(offset), tuple(shape), tuple(strides)):
            return Tensor(storage, offset, shape, strides)
        case (
            "torch._utils._rebuild_tensor_v2",
            (Storage() as storage, int(offset), tuple(shape), tuple(strides), _, _, *flags),
        ) if not any(flags):  # flags for a negated or conjugated view
            return Tensor(storage, offset, shape, strides)
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, _, _):
            return tensor
        case "torch.Size", (tuple(shape),):
            return shape
        case "torch.device", _:
            return None
    raise pickle.UnpicklingError(f"its pickle calls {name} with arguments that torch does not give it")

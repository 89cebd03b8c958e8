"""Reads weight files, by the suffix of their name, and recognises the networks of others by their arrays."""

from __future__ import annotations

import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
from safetensors import safe_open

from big_distill.errors import RunError
from big_distill.weights import container
from big_distill.weights.pretrained import bit_npz, timm_names, torch_file
from big_distill.weights.pretrained.translation import Translated

_PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, and Lightning or a class around it
_COUNTERS = ("n_averaged",)  # what torch's AveragedModel keeps beside the weights


class WeightFile(NamedTuple):
    """Holds what a weight file has: its arrays by name, and a remark for the user about the choice of them, or ""."""

    arrays: dict[str, np.ndarray]
    remark: str = ""


def suffix_of(path: pathlib.Path) -> str:
    """Returns the suffix that says how a file is read: .pth.tar counts as one."""
    return ".pth.tar" if path.name.endswith(".pth.tar") else path.suffix


def read(path: pathlib.Path) -> WeightFile:
    """Reads the arrays of a weight file by name, without the prefixes that wrappers of a network give to all of them.

    Raises:
      RunError: another kind of file, or a damaged one.
    """
    suffix = suffix_of(path)
    if suffix not in SUFFIXES:
        *suffixes, last = SUFFIXES
        raise RunError(f"{path} is not a weight file: expected {', '.join(suffixes)} or {last}")
    try:
        arrays, remark = _READERS[suffix](path)
        return WeightFile(_without_prefixes(arrays), remark)
    except RunError:  # the container's reader raises it, with the reason
        raise
    except Exception as error:  # zipfile, pickletools, safetensors and NumPy raise a dozen kinds on damaged files
        first_line = str(error).partition("\n")[0][:200]
        raise RunError(f"{path} is not a weight file ({suffix}), or it is damaged: {first_line}") from error


def _without_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for prefix in _PREFIXES:
        named = [name for name in arrays if name not in _COUNTERS]
        if named and all(name.startswith(prefix) for name in named):
            return _without_prefixes({name.removeprefix(prefix): arrays[name] for name in named})
    return arrays


def translate(arrays: dict[str, np.ndarray], path: pathlib.Path, source: str, name: str | None = None) -> Translated:
    """Recognises the network in a file of others, and puts its arrays under our names.

    Args:
      arrays: by the file's names.
      path: the file.
      source: the path or name by which the user gave it, for the errors.
      name: timm's name of the network, from the config beside it; None leaves it to `source`.

    Raises:
      RunError: the network is not known here.
    """
    try:
        if path.suffix == ".npz":
            return bit_npz.translate(arrays, source)
        return timm_names.translate(arrays, source, name)
    except (IndexError, KeyError, ValueError) as error:
        raise RunError(f"{source} has an array of an impossible shape: {error}") from error


def _read_npz(path: pathlib.Path) -> WeightFile:
    """Reads an .npz more strictly than np.load.

    np.load accepts members that are not numbers, two members of one name, and checksums that it never reached. Members
    may not overlap here, so the ratio of deflate (1032:1) limits the memory by the file's size.
    """
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.compress_size for member in members) > path.stat().st_size:
            raise ValueError("its members overlap")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name!r} is there twice, or is not compressed as NumPy does it")
            with archive.open(member) as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
                if file.read(1):  # this read also makes zipfile compare the checksum
                    raise ValueError(f"{name!r} goes on behind its array")
            if array.dtype.kind not in "biuf":
                raise ValueError(f"{name!r} has dtype {array.dtype}, which no weights have")
            arrays[name] = array
    return WeightFile(arrays)


def _read_safetensors(path: pathlib.Path) -> WeightFile:
    """Reads all tensors of a file. bfloat16 is that of ml_dtypes; float8 is refused, as NumPy lacks it."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    if complex_ := [name for name, array in arrays.items() if array.dtype.kind == "c"]:
        raise ValueError(f"tensor {complex_[0]!r} is of complex numbers")
    return WeightFile(arrays)


def _read_torch(path: pathlib.Path) -> WeightFile:
    return WeightFile(*torch_file.read(path))


def _read_container(path: pathlib.Path) -> WeightFile:
    return WeightFile(container.read(path))


_READERS = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".pth.tar", ".tar"), _read_torch),
    container.SUFFIX: _read_container,
}
SUFFIXES = tuple(_READERS)

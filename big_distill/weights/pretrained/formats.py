"""Reads weight files, by the suffix of their name, and recognises the networks of others by their arrays."""

from __future__ import annotations

import pathlib
import zipfile

import numpy as np
from safetensors import safe_open

from big_distill.errors import RunError
from big_distill.weights import container
from big_distill.weights.pretrained import bit_npz, timm_names, torch_file
from big_distill.weights.pretrained.translation import Translated


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a weight file by name.

    Raises:
      RunError: another kind of file, or a damaged one.
    """
    if path.suffix not in _READERS:
        *suffixes, last = _READERS
        raise RunError(f"{path} is not a weight file: expected {', '.join(suffixes)} or {last}")
    try:
        return _READERS[path.suffix](path)
    except RunError:  # the container's reader raises it, with the reason
        raise
    except Exception as error:  # zipfile, pickletools, safetensors and NumPy raise a dozen kinds on damaged files
        first_line = str(error).partition("\n")[0][:200]
        raise RunError(f"{path} is not a weight file ({path.suffix}), or it is damaged: {first_line}") from error


def translate(arrays: dict[str, np.ndarray], path: pathlib.Path, source: str) -> Translated:
    """Recognises the network in a file of others, and puts its arrays under our names.

    Args:
      arrays: by the file's names.
      path: the file.
      source: the path or name by which the user gave it, for the errors.

    Raises:
      RunError: the network is not known here.
    """
    module = bit_npz if path.suffix == ".npz" else timm_names
    try:
        return module.translate(arrays, source)
    except (IndexError, KeyError, ValueError) as error:
        raise RunError(f"{source} has an array of an impossible shape: {error}") from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
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
    return arrays


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file. bfloat16 is that of ml_dtypes; float8 is refused, as NumPy lacks it."""
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    if complex_ := [name for name, array in arrays.items() if array.dtype.kind == "c"]:
        raise ValueError(f"tensor {complex_[0]!r} is of complex numbers")
    return arrays


_READERS = {
    ".npz": _read_npz,
    ".safetensors": _read_safetensors,
    **dict.fromkeys((".pth", ".pt", ".bin"), torch_file.read),
    container.SUFFIX: container.read,
}

"""Weight files, read by what they end with, and told apart by what is in them."""

from __future__ import annotations

import io
import pathlib
import zipfile
import zlib

import numpy as np

from big_distill.artifact import container
from big_distill.errors import RunError
from big_distill.pretrained import bit_npz, safetensors_file, timm_names, torch_file
from big_distill.pretrained.translation import Translated


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a weight file by name: `.npz`, `.safetensors`, PyTorch's `.pth`, `.pt` and `.bin`, our `.bdz`.

    Raises:
      RunError: another kind of file, or a damaged one.
    """
    match path.suffix:
        case ".npz":
            return _read_npz(path)
        case ".safetensors":
            return safetensors_file.read(path)
        case ".pth" | ".pt" | ".bin":
            return torch_file.read(path)
        case container.SUFFIX:
            return container.read(path)
    raise RunError(f"{path} is not a weight file: expected .npz, .safetensors, .pth, .pt, .bin or {container.SUFFIX}")


def translate(arrays: dict[str, np.ndarray], path: pathlib.Path, source: str) -> Translated:
    """What network a file of others holds, and its arrays under our names; `source` is what the user called it.

    Raises:
      RunError: not one that is known here.
    """
    module = bit_npz if path.suffix == ".npz" else timm_names
    try:
        return module.translate(arrays, source)
    except (IndexError, KeyError, ValueError) as error:
        raise RunError(f"{source} has an array of an impossible shape: {error}") from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, TypeError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise RunError(f"{path} is not a weight file (.npz), or it is damaged") from error

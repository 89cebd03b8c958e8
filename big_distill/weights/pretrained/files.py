"""Weight files, read by what they end with, and told apart by what is in them."""

from __future__ import annotations

import pathlib
import zipfile

import numpy as np

from big_distill.errors import RunError
from big_distill.weights import container
from big_distill.weights.pretrained import bit_npz, safetensors_file, timm_names, torch_file
from big_distill.weights.pretrained.translation import Translated


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
    """Stricter than np.load, which takes members that are no numbers, two of a name, and checksums it never reached.

    Deflate's 1032:1 bounds the memory by the file's size, because its members may not overlap.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.compress_size for member in members) > path.stat().st_size:
                raise ValueError("its members overlap")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{name!r} is there twice, or not as NumPy compresses it")
                with archive.open(member) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                    if file.read(1):  # also what makes zipfile compare the checksum
                        raise ValueError(f"{name!r} goes on behind its array")
                if array.dtype.kind not in "biuf":
                    raise ValueError(f"{name!r} is of {array.dtype}, which is no weights")
                arrays[name] = array
    except Exception as error:  # zipfile and NumPy's parser of headers raise a dozen kinds on damaged files
        raise RunError(f"{path} is not a weight file (.npz), or it is damaged: {error}") from error
    return arrays

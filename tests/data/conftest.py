"""Records the parts of JPEGs that were decoded alone, for the tests of this directory."""

import pytest

from big_distill.data import jpeg


@pytest.fixture(params=["by the extra", "without the extra"])
def parts(request, monkeypatch):
    """Returns the growing list of parts that were decoded alone; None without the extra, which cuts whole images."""
    if request.param == "without the extra":
        monkeypatch.setattr(jpeg, "part_decoder", lambda: None)
        return None
    pytest.importorskip("nvidia.nvimgcodec")
    done, decode_box = [], jpeg.part_decoder()

    def decode(*args):
        part = decode_box(*args)
        done.extend([] if part is None else [part])
        return part

    monkeypatch.setattr(jpeg, "part_decoder", lambda: decode)
    return done

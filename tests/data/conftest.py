"""What was decoded as a part, for all that looks at it."""

import pytest

from big_distill.data import jpeg


@pytest.fixture(params=["by the extra", "without the extra"])
def parts(request, monkeypatch):
    """The parts that were decoded alone, a list that grows; None without the extra: all is decoded, and then cut."""
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

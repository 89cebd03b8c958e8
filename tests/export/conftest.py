"""Makes the networks whose files are tested."""

import pytest
from networks import FAMILIES, make_example
from tiers import cases

from big_distill.models import vit


@pytest.fixture
def make(monkeypatch):
    """Returns a function that makes the `Example` of a family."""
    monkeypatch.setitem(vit.SIZES, "vit_small", (12, 2, 3))
    return make_example


@pytest.fixture(params=cases("cnn", full=[family for family in FAMILIES if family != "cnn"]))
def example(request, make):
    return make(request.param)

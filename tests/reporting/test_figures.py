"""What is drawn of long curves, and what numbers look like on an axis."""

import numpy as np
import pytest

from big_distill.reporting.figures import short, thinned


def test_long_curves_are_thinned():
    """Evenly on a logarithmic axis, and they begin and end where they did."""
    steps = np.arange(1.0, 100_001)
    x, y = thinned(steps, 2 * steps)
    assert 100 < len(x) <= 202 and (x[0], x[-1]) == (1, 100_000)
    assert (y == 2 * x).all() and (np.diff(x) > 0).all()
    assert np.diff(np.log(x[x > 100])).max() < 0.1
    assert len(thinned(steps[:200], steps[:200])[0]) == 200


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (1, "1"), (999, "999"), (1500, "1.5k"), (2e6, "2M"), (3e9, "3G"), (0, "0")]
)
def test_short_numbers(value, text):
    assert short(value) == text

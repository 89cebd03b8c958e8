"""Checks which packed files are the best at their size."""

import pytest

from big_distill.reporting.document import front


@pytest.mark.parametrize(
    ("points", "best"),
    [
        ([(1, 0.5), (2, 0.6), (3, 0.6), (4, 0.9)], {1, 2, 4}),
        ([(1, 0.5), (1, 0.4), (2, 0.5)], {1}),
        ([(2, 0.7), (2, 0.7), (1, None)], {1, 2}),
        ([(1, None)], set()),
    ],
)
def test_nothing_on_the_front_is_beaten(points, best):
    """Two files with the same cost and accuracy do not beat each other; an unmeasured file takes no part."""
    files = [{"number": i, "bytes": cost, "accuracy": accuracy} for i, (cost, accuracy) in enumerate(points, 1)]
    assert front(files, "bytes") == best

"""Which files are on the front: as the definition says."""

from hypothesis import given
from hypothesis import strategies as st

from big_distill.reporting.pareto import front

POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=12)


@given(points=POINTS)
def test_nothing_on_the_front_is_beaten_and_all_else_is(points):
    def beats(a, b):
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    wanted = [not any(beats(other, point) for other in points) for point in points]
    assert front([cost for cost, _ in points], [gain for _, gain in points]) == wanted

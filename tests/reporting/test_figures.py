"""Checks figures in Matplotlib's form, before they become files."""

import dataclasses

import numpy as np
import pytest

from big_distill.reporting import figures, svg
from big_distill.reporting.figures import Line, short
from big_distill.reporting.sweep import Point, Spread, Sweep


@pytest.fixture
def axes(monkeypatch):
    """Returns a function that gives the axes of the last figure, which is not written."""
    seen = []
    monkeypatch.setattr(svg, "drawn", lambda figure: seen.append(figure.axes[0]) or "<svg></svg>")
    return lambda: seen[-1]


SEVERAL = (Point(10, 3, Spread(3, 0.5, 0.4, 0.7), None), Point(100, 2, Spread(2, 0.6, 0.5, 0.7), None))
SWEEP = Sweep("total_epochs", (), (), (), {"a": (*SEVERAL, Point(1000, 1, Spread(1, 0.8, 0.8, 0.8), None))})


def test_a_point_of_one_seed_has_no_band(axes):
    """A band there would look like certainty. The point is hollow, and the line goes through it."""
    figures.swept(SWEEP, "accuracy")
    line, hollow = axes().lines
    assert line.get_xydata().tolist() == [[10, 50], [100, 60], [1000, 80]]
    assert (line.get_markevery().tolist(), line.get_label()) == ([True, True, False], "a")
    assert (hollow.get_xydata().tolist(), hollow.get_fillstyle()) == ([[1000, 80]], "none")
    band, bars = axes().collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 0].max() == 100 and {40.0, 50.0, 70.0} == set(corners[:, 1])
    assert [bar.vertices.tolist() for bar in bars.get_paths()] == [[[10, 40], [10, 70]], [[100, 50], [100, 70]]]
    assert axes().get_xscale() == "log", "two decades"
    assert figures.swept(SWEEP, "agreement") is None, "it was not measured"


def test_where_every_point_is_one_seed_none_is_hollow(axes):
    alone = {"a": tuple(Point(x, 1, Spread(1, 0.5, 0.5, 0.5), None) for x in (1, 2))}
    figures.swept(dataclasses.replace(SWEEP, lines=alone), "accuracy")
    (line,) = axes().lines
    assert line.get_markevery().all() and not axes().collections
    assert axes().get_xscale() == "linear", "less than a decade"


def test_a_line_that_was_not_measured_leaves_its_colour_free(axes):
    alone = tuple(Point(x, 1, Spread(1, 0.5, 0.5, 0.5), None) for x in (1, 2))
    taught = tuple(dataclasses.replace(point, agreement=point.accuracy) for point in alone)
    found = dataclasses.replace(SWEEP, lines={"alone": alone, "taught": taught})
    colours = []
    for score in ("accuracy", "agreement"):
        figures.swept(found, score)
        colours.append({line.get_label(): line.get_color() for line in axes().lines})
    assert list(colours[1]) == ["taught"] and colours[0]["taught"] == colours[1]["taught"]


def packed(label, number, cost, accuracy):
    return {"label": label, "number": number, "bytes": cost, "latency_ms": cost, "accuracy": accuracy}


def test_the_front_is_filled_and_joined(axes):
    files = [packed("a", 1, 10, 0.5), packed("a", 2, 20, 0.4), packed("b", 3, 30, 0.9)]
    teachers = [{"name": "teacher", "accuracy": 0.95, "bytes": 400.0}, {"name": "other", "accuracy": 0.6}]
    figures.tradeoff("name", "title", "bytes", "bytes", files, teachers)
    front, *rest = axes().lines
    assert front.get_xydata().tolist() == [[10, 50], [30, 90], [30, 90]] and front.get_drawstyle() == "steps-post"
    assert [line.get_xydata().tolist() for line in rest[:3]] == [[[10, 50]], [[20, 40]], [[30, 90]]]
    assert [line.get_fillstyle() for line in rest[:3]] == ["full", "none", "full"]
    assert [text.get_text() for text in axes().texts] == ["1", "3"], "as in the table"
    at = {line.get_label(): line.get_xydata().tolist() for line in rest[3:]}
    assert at["teacher"] == [[400, 95]] and at["other"] == [[0, 60], [1, 60]]


def test_one_file_has_an_axis_that_can_be_read(axes):
    teachers = [{"name": "one", "accuracy": 0.9, "bytes": 4}, {"name": "two", "accuracy": 0.8, "bytes": 4}]
    figures.tradeoff("name", "title", "ms", "latency_ms", [packed("a", 1, 0.217, 1.0)], teachers)
    left, right = axes().get_xlim()
    assert right / left < 3 and axes().get_ylim()[1] <= 101
    patterns = {str(line._unscaled_dash_pattern) for line in axes().lines if line.get_label() in ("one", "two")}
    assert len(patterns) == 2, "teachers do not look alike"


def test_no_two_of_many_curves_look_alike(axes):
    lines = [Line(f"{i}", np.arange(1.0, 30), np.arange(1.0, 30), colour=i) for i in range(28)]
    figures.curves("name", "title", "loss", lines, percent=False)
    looks = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in axes().lines}
    assert len(looks) == 28


def test_calibration_is_accuracy_against_confidence(axes):
    bins = np.zeros((3, 4))
    bins[:, 1], bins[:, 3] = (4.0, 2.0, 10.0), (27.0, 30.0, 30.0)  # sums of confidence, right answers, examples
    figures.reliability("name", "title", bins)
    (dots,) = axes().collections
    assert dots.get_offsets().data == pytest.approx(np.array([[40, 20], [90, 100]]))
    assert [bar.get_height() for bar in axes().patches] == pytest.approx([20, 100])
    assert [bar.get_x() + bar.get_width() / 2 for bar in axes().patches] == pytest.approx([37.5, 87.5])
    small, large = dots.get_sizes()
    assert large > small


def test_curves_are_in_percent_where_they_are_rates(axes):
    line = Line("student", np.array([10.0, 100.0]), np.array([0.25, 0.5]))
    figures.curves("name", "title", "accuracy, %", [line], percent=True, reference=0.75)
    drawn, teacher = axes().lines
    assert drawn.get_xydata().tolist() == [[10, 25], [100, 50]] and set(teacher.get_ydata()) == {75}
    assert (axes().get_xscale(), axes().get_yscale()) == ("log", "linear")
    figures.curves("name", "title", "loss", [line], percent=False)
    assert axes().lines[0].get_xydata().tolist() == [[10, 0.25], [100, 0.5]] and axes().get_yscale() == "log"


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (1, "1"), (999, "999"), (1500, "1.5k"), (2e6, "2M"), (3e9, "3G"), (0, "0")]
)
def test_short_numbers(value, text):
    assert short(value) == text

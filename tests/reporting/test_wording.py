"""Checks how values are written in words."""

import pytest

from big_distill.reporting import markdown, wording
from big_distill.terminal import percent


@pytest.mark.parametrize(
    ("say", "value", "said"),
    [
        (wording.duration, 59.6, "1 min 0 s"),
        (wording.duration, 20, "20 s"),
        (wording.duration, 7_500, "2 h 5 min"),
        (wording.duration, None, "-"),
        (percent, 0.99239, "99.24 %"),
        (percent, None, "-"),
        (wording.count, 79_626, "79,626"),
        (wording.nats, 0.18557, "0.1856"),
        (wording.number, 12.5, "12.5"),
        (wording.number, None, "-"),
    ],
)
def test_numbers(say, value, said):
    assert say(value) == said


def test_networks():
    finished = {"accuracy": 0.5, "num_params": 12_345, "last": None}
    assert wording.network(finished) == "50.00 % (12,345 parameters)" and wording.network(None) == "-"
    begun = {"accuracy": None, "num_params": None, "last": {"accuracy": 0.25, "step": 5_624, "split": "validation"}}
    assert wording.network(begun) == "25.00 % at step 5,624, validation"


def test_a_line_about_several_runs_is_said_once():
    lines = [(name, ["same"] if name != "c" else ["same", "own"]) for name in "abcde"]
    assert wording.about(lines) == [("a; b; c and 2 more", "same"), ("c", "own")]


def test_a_table_has_no_column_or_markup_of_its_names():
    run = {
        "name": r"a|b <i> `c` [d] \e", "status": "finished", "teacher": None,
        "student": {"accuracy": 0.5, "num_params": None, "last": None},
        "agreement": None, "kl": None, "epochs": 2.0, "images_per_second": 1_000.0, "wall_seconds": 1.0,
    }  # fmt: skip
    line = markdown.table({"runs": [run]}).splitlines()[2]
    assert line == r"| a\|b &lt;i> \`c\` \[d] \\e | - | 50.00 % | - | - | 2 | 1,000 | 1 s |"
    assert markdown.is_table(markdown.table({"runs": []}).encode()) and not markdown.is_table(b"| mine |")

"""Names of the user's own functions."""

import pytest

from big_distill.config import user_code
from big_distill.errors import ConfigError

CONSTANT = 3


def test_finds_a_function():
    assert user_code.load("math:sqrt", "config.objective.name")(9) == 3


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("no_such_module:loss", "expected your own module:function; No module named 'no_such_module'"),
        (f"{__name__}:missing", "has no attribute 'missing'"),
        (f"{__name__}:CONSTANT", "expected a function, got int"),
        (":", "expected your own module:function"),
    ],
)
def test_names_the_field_and_the_reason(name, reason):
    with pytest.raises(ConfigError, match=f"^config.objective.name='{name}': .*{reason}") as error:
        user_code.load(name, "config.objective.name")
    assert "\n" not in str(error.value)

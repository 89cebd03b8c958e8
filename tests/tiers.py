"""Splits the cases of a test into those that everybody runs and the others, which --all adds."""

import pytest


def cases(*often, full):
    """Returns the cases of a test; those of `full` run with --all alone. A tuple holds several arguments."""
    rest = [case if isinstance(case, tuple) else (case,) for case in full]
    return [*often, *(pytest.param(*case, marks=pytest.mark.full) for case in rest)]

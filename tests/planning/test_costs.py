"""Checks times and sizes of a step against sums by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from big_distill.planning import chips
from big_distill.planning.costs import Cost, compile_step, largest_batch, roofline

CPUS = chips.open_slice("cpu:8")
V5E = dataclasses.replace(CPUS, name="v5e:2x4", platform="tpu", chip=chips.TPUS["v5e"])
ROOM = int(V5E.chip.memory)
REFUSED = Cost(False, refused="full")


def test_a_roofline():
    cost = Cost(True, flops=3e12, int8_flops=1e12, hbm_bytes=8_190_000_000, sent_bytes=1.75e9)
    seconds = roofline(cost, V5E)
    assert seconds["arithmetic"] == pytest.approx(2e12 / 197e12 + 1e12 / 393e12)
    assert seconds["memory"] == pytest.approx(0.01)
    assert seconds["interconnect"] == pytest.approx(1.75e9 / 200e9)
    cost = dataclasses.replace(cost, seconds=seconds)
    assert (cost.bound_by, cost.roofline_seconds) == ("arithmetic", seconds["arithmetic"])
    assert roofline(cost, CPUS) == {}
    alone = dataclasses.replace(V5E, devices=V5E.devices[:1], num_chips=1)
    assert roofline(cost, alone).keys() == {"arithmetic", "memory"}


def test_cores_of_a_chip_share_its_links():
    """Work, moves and collectives of two devices add up for their chip; half of what they send stays in it."""
    mesh = jax.sharding.Mesh(np.array(CPUS.devices), ("data",))
    rows, everywhere = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["data"], []))
    step = jax.jit(lambda x: x.sum(0), out_shardings=everywhere)
    args = (jax.ShapeDtypeStruct((64, 100), "float32", sharding=rows),)
    one, _ = compile_step(step, args, CPUS)
    two, text = compile_step(step, args, dataclasses.replace(CPUS, num_chips=4))
    assert text.startswith("HloModule") and one.collective_bytes == {"all-reduce": 400}
    for name in ("argument_bytes", "temp_bytes", "flops", "hbm_bytes"):
        assert getattr(two, name) == 2 * getattr(one, name)
    assert two.collective_bytes == {"all-reduce": 800}
    assert two.sent_bytes == one.sent_bytes == 2 * 400 * 7 / 8


def linear(batch):
    return Cost(True, argument_bytes=1000, temp_bytes=batch * 1_000_000 + 500_000)


EXACT = (ROOM - 501_000) // 1_000_000


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ({8: linear(8)}, (ROOM - 1000) // (1_000_000 + 500_000 // 8)),  # extrapolated as if the half megabyte grew too
        ({8: linear(8), 16: linear(16)}, EXACT),
        ({4: linear(4), 8: linear(8), 16: linear(16)}, EXACT),
        ({8: linear(8), 16: linear(16), EXACT + 1: REFUSED, 100_000: REFUSED}, EXACT),
        ({8: linear(8), 16: linear(16), 1000: REFUSED, 512: REFUSED}, 511),
        ({8: linear(8), 100_000: linear(100_000)}, EXACT),  # it compiles, but is more than there is
        ({8: REFUSED}, None),
        ({}, None),
    ],
)
def test_the_largest_batch_is_on_a_line_and_below_what_was_refused(costs, expected):
    assert largest_batch(costs, 1000, V5E) == expected
    for multiple in (2, 24):
        found = largest_batch(costs, 1000, V5E, multiple)
        assert found == (None if expected is None else expected // multiple * multiple)
    assert largest_batch(costs, 1000, CPUS) is None


def test_a_larger_batch_that_needs_no_more_says_nothing_of_the_slope():
    same = Cost(True, temp_bytes=16_500_000)
    assert largest_batch({8: same, 16: same}, 500_000, V5E) == (ROOM - 500_000) // 1_000_000
    more = Cost(True, temp_bytes=17_000_000)
    assert largest_batch({8: more, 16: same}, 500_000, V5E) == (ROOM - 500_000) // 1_000_000


def test_a_refused_step_has_no_figures():
    found = Cost(False, refused="full", compile_seconds=3.5).to_json()
    assert {name for name, value in found.items() if value is not None} == {"fits", "refused", "compile_seconds"}
    assert None not in [value for name, value in linear(8).to_json().items() if name not in _ROOFLINE]


_ROOFLINE = ("roofline_seconds", "bound_by", "refused")

"""Makes damage for the fuzz tests, and checks the limits of each case: time, memory, one line."""

import contextlib
import faulthandler
import math
import pathlib
import signal

import pytest
from hypothesis import strategies as st

SECONDS = 10  # a case takes milliseconds; only a hang takes this long, also on a busy machine
_NUMBERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, (1 << 31) - 1, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


@st.composite
def mutations(draw, *valid):
    """Draws one of the files and damages it: flips bits, cuts or adds bytes, overwrites lengths, or splices."""
    data = bytearray(draw(st.sampled_from(valid)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(("flip", "replace", "truncate", "length", "splice"))):
            case "flip" if position < len(data):
                data[position] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                data[position : position + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
            case "truncate":
                del data[position:]
            case "length":
                size = draw(st.sampled_from((2, 4, 8)))
                number = draw(st.sampled_from(_NUMBERS)) % (1 << 8 * size)
                data[position : position + size] = number.to_bytes(size, draw(st.sampled_from(("little", "big"))))
            case "splice":
                other = draw(st.sampled_from(valid))
                data[position:] = other[draw(st.integers(0, len(other))) :]
    return bytes(data)


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


ODD_NUMBERS = (0, -1, 1, 7, 1 << 31, -(1 << 63), 1 << 63, 10**400, 0.5, -0.0, -1.5, 1e308, 5e-324, math.nan, math.inf)
ODD_TEXTS = (
    "",
    " ",
    "\n",
    "\x00\x1b[31m",
    "é\u2028",
    "\ud800",
    "(",
    "a{99999999999}",
    "x" * 3000,
    "a:b",
    "../..",
    "nan",
)
ODD_VALUES = (None, True, False, *ODD_NUMBERS, *ODD_TEXTS, [], {}, [1], ["a", 2], {"": None}, {"a": {}}, _nested(50))


@st.composite
def json_mutations(draw, value):
    """Draws a JSON value in which some parts have another type, are left out, or have another name."""
    for _ in range(draw(st.integers(1, 3))):
        value = _mutated(draw, value)
    return value


def _mutated(draw, value):
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 4)) == 0:
        return draw(st.sampled_from(ODD_VALUES))
    copy = value.copy()
    keys = sorted(value) if isinstance(value, dict) else range(len(value))
    key = draw(st.sampled_from(keys))
    if draw(st.integers(0, 5)) == 0:
        moved = copy.pop(key)
        if isinstance(copy, dict) and draw(st.booleans()):
            copy[draw(st.sampled_from(("step", "config", "\n")))] = moved
    else:
        copy[key] = _mutated(draw, value[key])
    return copy


@contextlib.contextmanager
def bounded(megabytes=None, seconds=SECONDS):
    """Fails if the block takes too long, or (Linux) its peak is more than `megabytes` above the memory in use before.

    It measures resident memory, so that the memory of Pillow, NumPy and Rust counts too. Memory that is only reserved,
    never written, does not count.
    """

    def hangs(*_):
        pytest.fail(f"takes more than {seconds} s")

    before = _resident("VmRSS", reset=True) if megabytes else None
    previous = signal.signal(signal.SIGALRM, hangs)
    faulthandler.dump_traceback_later(6 * seconds, exit=True)  # for a hang in C, which sees no signal
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.1)  # repeats: what a callback raises is lost
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)
    if before is not None:
        assert _resident("VmHWM") - before <= 1024 * megabytes, "kB at the peak"


def _resident(key, reset=False):
    """Returns kB of this process, None if the system does not tell."""
    with contextlib.suppress(OSError):
        if reset:
            pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
    return None


def assert_one_line(error, *parts):
    """Checks that a message is one printable line of limited length that names the file or the field."""
    message = str(error)
    assert message.isprintable() and 0 < len(message) <= 2003
    assert all(str(part) in message for part in parts)

"""Defines the errors that a user can meet: each prints one line and ends the program with its own exit status."""

import difflib
import errno
import re
from collections.abc import Iterable, Sequence

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
"""An OSError with one of these numbers is the disk's fault."""

_MAX_MESSAGE = 2000
_ALIKE = 0.75  # of difflib's ratio, which is 0.71 for resnet50 and lenet5
_MOST_NAMES = 30


def printable(text: str) -> str:
    """Escapes all that cannot be printed, line breaks too: the result is one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def close(name: str, names: Iterable[str], most: int = 1) -> list[str]:
    """Finds the names that a person may have meant, best first: in another spelling, or as a word of a longer name.

    A name that only looks alike is none of them: who types resnet50 does not mean lenet5.
    """
    plain, known = _plain(name), {_plain(one): one for one in names}
    whole = "" if len(plain) > 2 else "(_|$)"
    inside = [one for one in known if re.search(f"(^|_){plain}{whole}", one)] if plain else []
    found = [*difflib.get_close_matches(plain, known, most, _ALIKE), *sorted(inside, key=len)]
    return [known[one] for one in dict.fromkeys(found)][:most]


def _plain(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower())


def nearest(name: str, names: Sequence[str]) -> str:
    """Returns `; did you mean 'x'?`, or the choices if no name is close."""
    if found := close(name, names):
        return f"; did you mean {found[0]!r}?"
    more = f" and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return f"; expected one of {', '.join(list(names)[:_MOST_NAMES])}{more}"


class BigDistillError(Exception):
    """Says in one line what is wrong and how the user can mend it.

    The message may quote a damaged file: it is made printable, and cut.
    """

    exit_status = 1

    def __init__(self, message: str):
        super().__init__(printable(message[:_MAX_MESSAGE]) + "..." * (len(message) > _MAX_MESSAGE))


class ConfigError(BigDistillError):
    """Says that a config or a flag is wrong. It names the field, the value and what was expected."""

    exit_status = 2


class DataError(BigDistillError):
    """Says that a data set is missing, damaged or not what the config says."""

    exit_status = 3


class RunError(BigDistillError):
    """Says that a run directory, checkpoint or weight file cannot be used as asked."""

    exit_status = 4


class NonFiniteError(BigDistillError):
    """Says that the loss or a gradient is not finite. The update was not applied."""

    exit_status = 5


class PeerLost(BigDistillError):
    """Says that another process died or cannot be reached. What was saved stays, and the same commands go on."""

    exit_status = 75


class Preempted(BigDistillError):
    """Says that a signal stopped the run. Its state was saved, and the same command goes on."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again


class Interrupted(BaseException):
    """Carries `Preempted` out of the running code. It is a BaseException, so that no handler of errors catches it."""

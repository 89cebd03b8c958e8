"""The errors a user can cause or meet: each prints as one line and ends the program with its own exit status."""

import difflib
import errno
from collections.abc import Sequence

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
"""The numbers of an OSError for which the disk is to blame."""

_MAX_MESSAGE = 2000


def printable(text: str) -> str:
    """Makes one line, and escapes whatever else cannot be printed."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def nearest(name: str, names: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or the choices when nothing is near."""
    close = difflib.get_close_matches(name, names, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {', '.join(names)}"


class BigDistillError(Exception):
    """Something the user can mend; its message is one line that says what and how.

    What a damaged file put into it is made printable, and cut.
    """

    exit_status = 1

    def __init__(self, message: str):
        super().__init__(printable(message[:_MAX_MESSAGE]) + "..." * (len(message) > _MAX_MESSAGE))


class ConfigError(BigDistillError):
    """A config or a flag that cannot be: names the field, the value and what was expected."""

    exit_status = 2


class DataError(BigDistillError):
    """A data set that is missing, damaged or not what the config says."""

    exit_status = 3


class RunError(BigDistillError):
    """A run directory, checkpoint or weight file that cannot be used as asked."""

    exit_status = 4


class NonFiniteError(BigDistillError):
    """The loss or a gradient stopped being finite; the update was not applied."""

    exit_status = 5


class PeerLost(BigDistillError):
    """Another process of the run died or cannot be reached; what was saved stays and the same commands go on."""

    exit_status = 75


class Preempted(BigDistillError):
    """A signal asked the run to stop; its state was saved and the same command goes on."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: try again


class Interrupted(BaseException):
    """`Preempted` on its way out of whatever was going on: no handler of errors must take it for one of its own."""

"""Turns SIGTERM, SIGINT and SIGHUP into requests: the loop saves and leaves, in any case within a stated time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

from big_distill.errors import Interrupted, Preempted

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def leave_on_signals() -> None:
    """Makes signals end the process with status 75 before and after a run, when there is nothing to save or undo.

    It raises no exception, because callbacks of JAX would swallow it.
    """
    for number in _SIGNALS:
        if not _is_deaf_to(number):
            signal.signal(number, _leave_at_once)


def _is_deaf_to(number: int) -> bool:
    """Returns True if the signal is SIGHUP and the process was started with nohup."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def _leave_at_once(number: int, _: Any) -> None:
    try:
        _write(f"stopped by {signal.Signals(number).name}; the same command goes on")
    finally:
        os._exit(Preempted.exit_status)


class Preemption:
    """Turns signals into `requested` where the loop has something to save (`deferred`), elsewhere into `Preempted`.

    A second signal changes nothing. `grace_seconds` after the first one the process ends (0: never), even in the middle
    of a compilation or a save. Only whole checkpoints remain of a save.

    With several processes JAX's preemption service catches SIGTERM. SIGINT and SIGHUP are passed on to it. It agrees on
    the next point at which all processes ask, and they stop there. The grace period begins at that point.
    """

    def __init__(self, grace_seconds: float):
        self.requested = False
        self._grace_seconds = grace_seconds
        self._deferred = False
        self._interrupted_by = ""
        self._times_asked = 0
        self._several = jax.process_count() > 1
        self._timer: threading.Timer | None = None
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> Preemption:
        if self._several:
            for number in (signal.SIGINT, signal.SIGHUP):
                self._handle(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return self
        for number in _SIGNALS:
            self._handle(number, self._on_signal)
        # Python runs a handler between two bytecodes, so not while XLA compiles. It sends this byte at once.
        ours, pythons = socket.socketpair()
        pythons.setblocking(False)
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        watch = threading.Thread(target=self._watch, args=(ours,), daemon=True)
        watch.start()
        self._restore.callback(watch.join)  # last, so that no timer starts after it
        self._restore.callback(pythons.close)  # ends the thread
        self._restore.callback(signal.set_wakeup_fd, before)
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._restore.close()
        if self._timer is not None:
            self._timer.cancel()
        if isinstance(error, Interrupted):
            raise Preempted(f"stopped by {error}, with nothing to save; the same command goes on") from None

    def _handle(self, number: int, handler: Any) -> None:
        if not _is_deaf_to(number):
            self._restore.callback(signal.signal, number, signal.signal(number, handler))

    def _watch(self, wakeups: socket.socket) -> None:
        with wakeups:
            while received := wakeups.recv(1):
                if received[0] in _SIGNALS:
                    self._start_timer()

    def _start_timer(self) -> None:
        if self._grace_seconds and self._timer is None:
            self._timer = threading.Timer(self._grace_seconds, self._leave)
            self._timer.daemon = True
            self._timer.start()

    def _leave(self) -> None:
        try:
            _write(
                f"not saved within config.grace_seconds={self._grace_seconds:g}; the same command goes on from the "
                "checkpoint before"
            )
        finally:
            os._exit(Preempted.exit_status)

    def _on_signal(self, number: int, _: Any) -> None:
        if self.requested:
            return
        self.requested = True
        if not self._deferred:
            self._interrupted_by = signal.Signals(number).name
            raise Interrupted(self._interrupted_by)
        _write("finishing the step, then saving")

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Notes a signal instead of raising it. The loop asks for it with `reached`.

        Raises:
          Interrupted: a signal came before, and the code that it interrupted swallowed it, as JAX's callbacks do.
        """
        if self._interrupted_by:
            raise Interrupted(self._interrupted_by)
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def reached(self) -> bool:
        """Returns True if the loop is to save and leave. All processes ask at the same points and get one answer."""
        self._times_asked += 1  # the service wants a number that rises from one run of a command to the next, too
        if self._several and not self.requested:
            self.requested = multihost_utils.reached_preemption_sync_point(self._times_asked)
            if self.requested:
                self._start_timer()
        return self.requested


def _write(message: str) -> None:
    """Writes to stderr past its buffer. The interrupted code may hold the buffer's lock."""
    os.write(2, f"big_distill: {message}\n".encode())

"""Runs `big_distill.main`, and sends its own process signals some milliseconds after a given moment of the run.

  python tests/faults/struck.py KILL "student's init" save 2 13.5 --config=...
  python tests/faults/struck.py TERM,TERM student evaluate 1 3 --config=...

The first line strikes 13.5 ms after the second save of the student's first stage in this process begins; nothing is
flushed. Moments are the start of a `step`, a `save`, an `evaluate`, or (with '' as the stage) an `open` of data and
networks. A `hang` is a step that never ends, in machine code, where Python runs no signal handler.
"""

import hashlib
import os
import signal
import sys
import threading
import time

from big_distill import cli, main
from big_distill.run_dir import checkpoints, metrics
from big_distill.training import loop, setup


def strike(names):
    for name in names:
        os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
        time.sleep(0.02)


def arm(names, stage, event, count, milliseconds):
    """Makes the count-th such moment of a stage send the signals after the milliseconds."""
    now, seen = [""], [0]

    def happens(name):
        if (now[0], name) == (stage, event):
            seen[0] += 1
            if seen[0] == count and not milliseconds:
                strike(names)
            elif seen[0] == count:
                threading.Timer(milliseconds / 1000, strike, (names,)).start()
                if event == "hang":
                    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)

    def announced(function, *names):
        def wrapped(*args, **kwargs):
            for name in names:
                happens(name)
            return function(*args, **kwargs)

        return wrapped

    def named(*args):
        now[0] = args[-1]
        try:
            return train(*args)
        finally:
            now[0] = ""

    train, loop._train = loop._train, named
    loop.open_data = announced(loop.open_data, "open")
    metrics.Progress.update = announced(metrics.Progress.update, "step", "hang")
    checkpoints.Checkpoints.save = announced(checkpoints.Checkpoints.save, "save")
    setup.Run.evaluate = announced(setup.Run.evaluate, "evaluate")


if __name__ == "__main__":
    names, stage, event, count, milliseconds = sys.argv[1:6]
    del sys.argv[1:6]
    arm(names.split(","), stage, event, int(count), float(milliseconds))
    main.define_flags()
    cli.run(main.main)

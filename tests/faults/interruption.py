"""Sends a real signal to runs in this process."""

import os
import signal

from big_distill.run_dir import metrics


def interrupt_after(patch, num_steps, number=signal.SIGTERM):
    """Sends this process a signal when its runs have made `num_steps` more steps, all together."""
    update, done = metrics.Progress.update, [0]

    def update_and_signal(self, step):
        update(self, step)
        done[0] += 1
        if done[0] == num_steps:
            patch.setattr(metrics.Progress, "update", update)
            os.kill(os.getpid(), number)

    patch.setattr(metrics.Progress, "update", update_and_signal)

"""Stands in for CLU's summary writer, which imports TensorFlow: the same event files, through tensorboardX.

Also where TensorFlow is installed, as importing it takes longer than the rest of the program together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX


class SummaryWriter:
    """As much of a `clu.metric_writers.MetricWriter` as is used here."""

    def __init__(self, logdir: str, **_: Any):
        self._writer = tensorboardX.SummaryWriter(logdir, write_to_disk=True)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """One value a name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, np.asarray(value).item(), step)

    def flush(self) -> None:
        """Writes what is buffered to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()

"""Replaces CLU's summary writer, which imports TensorFlow: writes the same event files through tensorboardX.

It does so even where TensorFlow is installed, because importing that takes longer than all other imports together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary


class SummaryWriter:
    """Implements the part of a `clu.metric_writers.MetricWriter` that is used here.

    It does not use tensorboardX's own queue and thread, because they would hang on a full disk.
    """

    def __init__(self, logdir: str, **_: Any):
        self._events = EventsWriter(os.path.join(logdir, "events"))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one value per name."""
        values = [Summary.Value(tag=name, simple_value=np.asarray(value).item()) for name, value in scalars.items()]
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Writes what is buffered to the file."""
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()

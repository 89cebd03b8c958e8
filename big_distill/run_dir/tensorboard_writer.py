"""Stands in for CLU's summary writer, which imports TensorFlow: the same event files, through tensorboardX.

It does so where TensorFlow is installed, too: importing that takes longer than all else together.
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
    """The part of a `clu.metric_writers.MetricWriter` that is used here.

    Without tensorboardX's own queue and thread, which a full disk would leave hanging.
    """

    def __init__(self, logdir: str, **_: Any):
        self._events = EventsWriter(os.path.join(logdir, "events"))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes one value a name."""
        values = [Summary.Value(tag=name, simple_value=np.asarray(value).item()) for name, value in scalars.items()]
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        """Writes what is buffered to the file."""
        self._events.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()

"""Stands in for CLU's summary writer where TensorFlow is absent: the same event files, through tensorboardX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
import tensorboardX.summary


class SummaryWriter:
    """A `clu.metric_writers.MetricWriter` for TensorBoard; what needs TensorFlow is left out."""

    def __init__(self, logdir: str, **_: Any):
        self._writer = tensorboardX.SummaryWriter(logdir, write_to_disk=True)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """One value a name."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, np.asarray(value).item(), step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Images [N, H, W, C] a name."""
        for name, value in images.items():
            self._writer.add_images(name, np.asarray(value), step, dataformats="NHWC")

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Markdown."""
        for name, value in texts.items():
            self._writer.add_text(name, value, step)

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """A histogram of all values a name."""
        for name, value in arrays.items():
            self._writer.add_histogram(name, np.asarray(value).ravel(), step, (num_buckets or {}).get(name, 30))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Hyperparameters, into the same event file (`add_hparams` would open a second one)."""
        for proto in tensorboardX.summary.hparams(dict(hparams), {}):
            self._writer.file_writer.add_summary(proto)

    def write_summaries(self, *args: Any, **kwargs: Any) -> None:
        """Raw TensorFlow summaries: left out."""

    write_videos = write_audios = write_pointcloud = write_summaries

    def flush(self) -> None:
        """Writes what is buffered to the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()

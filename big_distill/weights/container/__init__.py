"""Keeps a finished student in one file, the container, in as few bytes as its weights need."""

from big_distill.weights.container.file import SUFFIX, read, write

__all__ = ["SUFFIX", "read", "write"]

"""The container: what a finished student is shipped as, in as few bytes as its weights need."""

from big_distill.weights.container.file import SUFFIX, read, write

__all__ = ["SUFFIX", "read", "write"]

"""Distils a big image classifier into a small one that is as accurate."""

from typing import Any

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # imported here, so that `import big_distill` imports nothing heavy
        from big_distill.export.predictor import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

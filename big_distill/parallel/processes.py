"""Shares values among the processes of one run, and recognises the error of a process whose peer is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from big_distill.config import Config, differences, from_dict, to_dict
from big_distill.errors import ConfigError, DataError, RunError

_RAISED = (RunError, ConfigError, DataError)  # the errors that process 0 shares


def from_first_process(value: Any) -> Any:
    """Returns process 0's JSON-ready value in every process: they must not act on what different disks say."""
    if jax.process_count() == 1:
        return value
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, len(data))] = data[:size]
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())


def on_first_process(function: Callable[[], Any]) -> Any:
    """Calls a function in process 0, and returns its JSON-ready value in every process.

    Raises:
      RunError, ConfigError, DataError: process 0 raised it; every process raises it.
      RunError: process 0 could not read or write a file.
    """
    value, refusal = None, None
    if jax.process_index() == 0:
        try:
            value = function()
        except (RunError, ConfigError, DataError) as error:
            refusal = [_RAISED.index(type(error)) if type(error) in _RAISED else 0, str(error)]
        except OSError as error:
            refusal = [0, f"{error.filename}: {error.strerror}"]
    value, refusal = from_first_process([value, refusal])
    if refusal is not None:
        raise _RAISED[refusal[0]](refusal[1])
    return value


def check_same(config: Config) -> None:
    """Raises ConfigError in every process unless all have one config. Only where and how data are read may differ.

    Processes that run different programs wait for each other for ever.
    """
    if jax.process_count() == 1:
        return
    first = from_dict(from_first_process(to_dict(config)))
    changed = [line for kind in ("maths", "place", "numerics") for line in differences(first, config, kind)]
    changed += [line for line in differences(first, config, "cosmetic") if "source." not in line]
    others = np.flatnonzero(multihost_utils.process_allgather(np.array(bool(changed))))
    if changed:
        raise ConfigError(f"this process has another config than process 0 ({'; '.join(changed)}): give all the same")
    if len(others):
        names = ", ".join(map(str, others))
        raise ConfigError(f"process {names} of {jax.process_count()} was given another config than this one")


def is_peer_lost(error: BaseException) -> bool:
    """Returns True if an error, or what it was raised from, is that of a process that waits for another in vain."""
    if jax.process_count() == 1:
        return False
    signs = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "heartbeat", "Barrier failed")
    causes = (error, error.__cause__, error.__context__)
    texts = [str(cause) for cause in causes if isinstance(cause, RuntimeError | TimeoutError)]
    return any(sign in text for text in texts for sign in signs)

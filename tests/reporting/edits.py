"""Changes to what run directories hold."""

import json
import pathlib
from collections.abc import Callable
from typing import Any


def edit(path: pathlib.Path, change: Callable[[Any], Any]) -> None:
    """Changes a JSON file to what `change` returns, or, of None, to what it made of the value."""
    value = json.loads(path.read_text())
    changed = change(value)
    path.write_text(json.dumps(value if changed is None else changed))

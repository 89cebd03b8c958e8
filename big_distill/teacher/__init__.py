"""The teacher: from a run, a file, a name or a config to frozen networks that were checked and placed."""

from big_distill.teacher.loading import (
    abstract,
    announced,
    class_names,
    frozen_variables,
    identity,
    load,
    paths_of,
    place,
    plain,
    read,
)

__all__ = [
    "abstract",
    "announced",
    "class_names",
    "frozen_variables",
    "identity",
    "load",
    "paths_of",
    "place",
    "plain",
    "read",
]

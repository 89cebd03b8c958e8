"""The config of a run: its schema, its values, its checks, and what config files call.

`Config` and its parts are in `schema`. A config file assigns to `files.template()`; `big_distill.resolve` makes a
frozen `Config` of it.
"""

from big_distill.config.schema import (
    OWN_TEACHER,
    PROFILED_STEPS,
    CompressConfig,
    Config,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    SourceConfig,
    TeacherConfig,
    ViewConfig,
)
from big_distill.config.values import differences, fingerprint, freeze, from_dict, leaves, to_dict

__all__ = [
    "OWN_TEACHER",
    "PROFILED_STEPS",
    "CompressConfig",
    "Config",
    "MeshConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "SourceConfig",
    "TeacherConfig",
    "ViewConfig",
    "differences",
    "fingerprint",
    "freeze",
    "from_dict",
    "leaves",
    "to_dict",
]

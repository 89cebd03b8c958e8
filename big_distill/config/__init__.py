"""Defines the config of a run: its schema, its values, its checks, and the functions that config files call.

`Config` and its parts are in `schema`. A config file assigns to `template.template()`; `big_distill.resolve` makes a
frozen `Config` of it.
"""

# ruff: noqa: F401
from big_distill.config.schema import (
    BIT_DEPTH,
    BIT_DEPTHS,
    FITS,
    LAYOUTS,
    OWN_TEACHER,
    PAD_GREY,
    PATH_SOURCES,
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
from big_distill.config.user_code import parse_options
from big_distill.config.values import differences, fingerprint, freeze, from_dict, leaves, to_dict

"""Networks with their weights: what they are, the files that hold them, and files of others."""

from big_distill.weights.architecture import (
    Architecture,
    Arrays,
    Network,
    architecture_of,
    arrays_of,
    check_same,
    check_shapes,
    rebuilt,
    with_input_ranges,
)
from big_distill.weights.card import from_json
from big_distill.weights.files import announced, contents, load, read_architecture, save, write_architecture
from big_distill.weights.merge import Merge, merge
from big_distill.weights.variables import Variables, num_nonzero, num_params, sha256

__all__ = [
    "Architecture",
    "Arrays",
    "Merge",
    "Network",
    "Variables",
    "announced",
    "architecture_of",
    "arrays_of",
    "check_same",
    "check_shapes",
    "contents",
    "from_json",
    "load",
    "merge",
    "num_nonzero",
    "num_params",
    "read_architecture",
    "rebuilt",
    "save",
    "sha256",
    "with_input_ranges",
    "write_architecture",
]

"""Describes networks with their weights. Reads and writes the files that hold them, and reads files of others."""

# ruff: noqa: F401
from big_distill.weights.architecture import (
    Architecture,
    Arrays,
    ConfigArchitecture,
    Network,
    Variables,
    architecture_of,
    arrays_of,
    check_same,
    check_shapes,
    merge,
    num_nonzero,
    num_params,
    other_input,
    rebuilt,
    sha256,
    with_input_ranges,
)
from big_distill.weights.card import ASSUMED, from_json, in_words
from big_distill.weights.files import (
    announced,
    card_place,
    contents,
    load,
    read_architecture,
    save,
    write_architecture,
)

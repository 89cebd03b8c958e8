"""What a `CompressConfig` may be."""

from __future__ import annotations

import re

from big_distill.config import Config
from big_distill.config.checks import at_least, check_regex, choice, require


def check_compress(config: Config, prefix: str) -> None:
    """Raises ConfigError unless `config.compress` makes sense in this run, which the config calls `prefix`."""
    compress, path = config.compress, f"{prefix}.compress"
    check_regex(f"{path}.layers", compress.layers)
    for name, number, expected in (
        ("layer_sparsity", r"0(\.\d+)?", "PATTERN=SHARE, such as 'fc1/kernel=0.92'"),
        ("layer_bits", r"[1-9]|1[0-2]", "PATTERN=BITS, 1 to 12, such as 'conv.*=8'"),
    ):
        for rule in getattr(compress, name):
            pattern, _, value = rule.rpartition("=")
            check_regex(f"{path}.{name}", pattern)
            require(bool(pattern and re.fullmatch(number, value)), f"{path}.{name}={rule!r}: expected {expected}")
    for name in ("sparsity", "rank_energy", "rank_flops"):
        share = getattr(compress, name)
        require(0 <= share < 1, f"{path}.{name}={share}: expected a share in [0, 1)")
    for name, choices in (
        ("scope", ("global", "layer")),
        ("prune_schedule", ("cubic", "iterative")),
        ("centroids", ("linear", "density", "random")),
        ("rest", ("float32", "bfloat16")),
    ):
        choice(f"{path}.{name}", getattr(compress, name), choices)
    require(0 <= compress.bits <= 12, f"{path}.bits={compress.bits}: expected 0 to 12 bits")
    integers = compress.integer_bits
    require(integers in (0, *range(2, 9)), f"{path}.integer_bits={integers}: expected 0, or 2 to 8 bits")
    require(
        not (integers and compress.bits), f"{path}.integer_bits={integers} with {path}.bits={compress.bits}: set one"
    )
    require(
        not (compress.rank_energy and compress.rank_flops), f"{path}.rank_energy and {path}.rank_flops: set one of them"
    )
    _check_structure(config, prefix)
    require(
        not compress.layer_sparsity or compress.scope == "layer",
        f"{path}.layer_sparsity={compress.layer_sparsity} needs {path}.scope='layer'",
    )
    require(not compress.layer_bits or compress.bits > 0, f"{path}.layer_bits needs {path}.bits, for all others")
    begin, end = compress.prune_begin, compress.prune_end
    require(0 <= begin <= end <= 1, f"{path}.prune_begin={begin}, prune_end={end}: expected shares, in this order")
    at_least(f"{path}.prune_every_steps", compress.prune_every_steps, 1)
    require(
        not compress.bits or bool(config.init_from or config.init_config),
        f"{path}.bits={compress.bits} shares the weights of a trained network: set {prefix}.init_from or init_config",
    )
    require(
        not compress.bits or not config.init_fresh,
        f"{path}.bits={compress.bits} with {prefix}.init_fresh={config.init_fresh!r}: new weights cannot be shared",
    )
    require(
        end > 0
        or not (compress.sparsity or compress.layer_sparsity or ":" in compress.structure)
        or bool(config.init_from or config.init_config),
        f"{path}.prune_end={end} prunes before anything is learned: set {prefix}.init_from, or a later end",
    )


def _check_structure(config: Config, prefix: str) -> None:
    compress, path = config.compress, f"{prefix}.compress"
    structure, rates = compress.structure, bool(compress.sparsity or compress.layer_sparsity)
    begun = bool(config.init_from or config.init_config)
    if grouped := re.fullmatch(r"([1-9]\d*):([1-9]\d*)", structure):
        kept, group = map(int, grouped.groups())
        require(kept < group, f"{path}.structure={structure!r}: expected N:M with N < M, such as '2:4'")
        require(not rates, f"{path}.structure={structure!r} says how many stay: no {path}.sparsity beside it")
    else:
        choice(f"{path}.structure", structure, ("weights", "channels", "2:4"))
    require(structure != "channels" or rates, f"{path}.structure='channels': set {path}.sparsity, the share that goes")
    cuts = [name for name in ("rank_energy", "rank_flops") if getattr(compress, name)]
    cuts += ["structure='channels'"] * (structure == "channels")
    require(
        begun or not cuts,
        f"{path}.{cuts and cuts[0]} is about a trained network: set {prefix}.init_from or {prefix}.init_config",
    )

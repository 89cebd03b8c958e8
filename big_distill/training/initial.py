"""Reads the network that a run starts from, and reshapes it: fewer channels, low rank, rounded inputs."""

from __future__ import annotations

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp

from big_distill import compress, models, weights
from big_distill import teacher as teachers
from big_distill.compress import channels, low_rank
from big_distill.config import OWN_TEACHER, Config, ModelConfig
from big_distill.errors import ConfigError
from big_distill.run_dir import layout
from big_distill.run_dir.layout import INIT_DIR, TEACHER_DIR
from big_distill.terminal import say

_MANY_ZEROS = 0.1  # share of a network's weights; fewer may be zero by chance


def reshapes(config: Config) -> bool:
    """Returns True if a run, or a stage before it, trains another network than `config.student` says."""
    return _reshapes(config) or (config.begins_from is not None and reshapes(config.begins_from))


def read(config: Config, workdir: pathlib.Path) -> weights.Network | None:
    """Reads the network that a new run starts from. Returns None if there is none, or if it is not trained yet."""
    first = config.begins_from
    if first is not None and layout.read_summary(workdir / (INIT_DIR if config.init_config else TEACHER_DIR)) is None:
        return None
    if config.init_from == OWN_TEACHER:
        return teachers.read(config, workdir)[0]
    path = workdir / INIT_DIR if first is not None else config.init_from
    if not path:
        return None
    network = weights.load(path)
    for line in (*network.remarks, weights.in_words(network)):
        if line:
            say(line)
    return network


def reshaped(config: Config, network: weights.Network) -> weights.Network:
    """Makes the network that a run trains out of the one that it starts from.

    Args:
      config: the resolved config.
      network: the network that `config.init_from` names or that the first stage left.

    Raises:
      RunError: it is another network than the config says.
      ConfigError: a pattern that matches nothing.
    """
    model = network.architecture.model
    expected = dataclasses.replace(config.student, activation_bits=model.activation_bits)
    if config.begins_from is not None and reshapes(config.begins_from):
        expected = dataclasses.replace(expected, features=model.features, ranks=model.ranks)
    subject = f"{network.source} does not fit this student"
    weights.check_same(model, expected, subject, "config.student")
    card = dataclasses.replace(network.architecture.card, image_size=config.view.size_for_student)
    network = dataclasses.replace(network, architecture=dataclasses.replace(network.architecture, card=card))
    if _reshapes(config):
        weights.check_shapes(network)
    asked, params = config.compress, network.variables["params"]
    zeros = 1 - weights.num_nonzero(params) / weights.num_params(params)
    if zeros > _MANY_ZEROS and not (asked.sparsity or asked.layer_sparsity or asked.bits or asked.integer_bits):
        say(
            f"{network.source}: {100 * zeros:.0f} % of its weights are 0, and training will change them; "
            f"compress.sparsity={zeros:.2f} keeps them 0"
        )
    if config.compress.structure == "channels":
        network = _with_fewer_channels(config, network)
    if config.compress.rank_energy or config.compress.rank_flops:
        network = _factored(config, network)
    if config.student.activation_bits != model.activation_bits:
        network = weights.with_input_ranges(network, config.student.activation_bits)
    return network


def _reshapes(config: Config) -> bool:
    asked = config.compress
    return asked.structure == "channels" or bool(asked.rank_energy or asked.rank_flops)


def prunable(architecture: weights.ConfigArchitecture) -> list[channels.Layer]:
    """Lists the layers of a network whose channels can be cut.

    Raises:
      ConfigError: the network has none.
    """

    def abstract(model: ModelConfig) -> weights.Variables:
        return dataclasses.replace(architecture, model=model).abstract_variables()

    features = models.features_of(architecture.model)
    if not features:
        raise ConfigError(f"structure='channels': the model {architecture.model.name!r} has no widths that can be set")
    return channels.layers(architecture.model, features, abstract)


def folded_arrays_of(network: weights.Network) -> weights.Arrays:
    """Returns the folded network's arrays: kernels as they are used, standardised and times BatchNorm's factor."""
    folded = network.architecture.fold(network.variables)
    return weights.arrays_of(dataclasses.replace(network, variables=folded))


def _with_fewer_channels(config: Config, network: weights.Network) -> weights.Network:
    asked, found = config.compress, prunable(network.architecture)
    chosen = compress.matching("layers", asked.layers, [layer.kernel for layer in found])
    shares = compress.by_layer("layer_sparsity", asked.layer_sparsity, asked.sparsity, chosen)
    everywhere = asked.sparsity if asked.scope == "global" else None
    kept = channels.choose(found, folded_arrays_of(network), shares, everywhere)
    features = tuple(map(len, kept))
    say(f"{network.source}: channels {tuple(layer.size for layer in found)} -> {features}")
    return weights.rebuilt(network, channels.cut(found, weights.arrays_of(network), kept), features=features)


def _factored(config: Config, network: weights.Network) -> weights.Network:
    asked, layers = config.compress, _dense_layers(network)
    chosen = compress.matching("layers", asked.layers, [f"{name}/kernel" for name, (_, can) in layers.items() if can])
    ours = {name: layer for name, (layer, _) in layers.items() if f"{name}/kernel" in chosen}
    others = sum(layer.multiplications() for name, (layer, _) in layers.items() if name not in ours)
    try:
        ranks = (
            low_rank.ranks_for(ours, asked.rank_energy)
            if asked.rank_energy
            else low_rank.ranks_for_flops(ours, others, asked.rank_flops)
        )
    except ValueError as error:
        raise ConfigError(f"config.compress.rank_flops={asked.rank_flops}: {error}") from error
    before = others + sum(layer.multiplications() for layer in ours.values())
    after = others + sum(layer.multiplications(ranks.get(name, ())) for name, layer in ours.items())
    in_words = ", ".join(models.format_ranks(ranks)) or "no kernel is cheaper factored"
    say(f"{network.source}: {in_words}; {after:,} of {before:,} multiplications")
    arrays = weights.arrays_of(network)
    for name, rank in ranks.items():
        del arrays[f"params/{name}/kernel"]
        for factor, value in low_rank.factorize(ours[name].kernel, rank).items():
            arrays[f"params/{name}/{factor}/kernel"] = value
    both = {**models.parse_ranks(network.architecture.model.ranks), **ranks}
    return weights.rebuilt(network, arrays, ranks=models.format_ranks(both))


def _dense_layers(network: weights.Network) -> dict[str, tuple[low_rank.Layer, bool]]:
    """Returns by name each layer with its kernel as used, and True if it can have factors (a depthwise one cannot)."""
    architecture = network.architecture
    model, image = architecture.build("float32"), jax.ShapeDtypeStruct(architecture.input_shape, jnp.float32)
    applied = jax.eval_shape(lambda v, x: models.kernel_applications(model, v, x), network.variables, image)
    # A kernel is standardised where it is used. Its factors are not. BatchNorm stays beside them.
    standardized = models.family_of(architecture.model).standardizes_kernels
    kernels = folded_arrays_of(network) if standardized else weights.arrays_of(network)
    found = {}
    for name, (x, y) in applied.items():
        if name.rpartition("/")[2] in models.FACTORS:
            continue  # a factor that an earlier stage made
        kernel = kernels[f"params/{name}/kernel"]
        layer = low_rank.Layer(kernel, math.prod(x.shape[1:-1]), math.prod(y.shape[1:-1]))
        found[name] = (layer, x.shape[-1] == kernel.shape[-2])
    return found

"""What a stage makes of the network that it starts from: fewer channels, factored kernels, inputs in few bits."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from big_distill import compress, models, weights
from big_distill.compress import channels, low_rank
from big_distill.config import Config, ModelConfig
from big_distill.errors import ConfigError
from big_distill.metrics import say
from big_distill.state import path_name

Arrays = dict[str, np.ndarray]


def reshapes(config: Config) -> bool:
    """Whether a run, or a stage before it, trains another network than `config.student` says."""
    asked = config.compress
    own = asked.structure == "channels" or bool(asked.rank_energy or asked.rank_flops)
    return own or (config.init_config is not None and reshapes(config.init_config))


def begin_from(config: Config, network: weights.Network) -> weights.Network:
    """The network that a run trains, made of the one that it starts from.

    Args:
      config: resolved.
      network: what `config.init_from` or the first stage left.

    Raises:
      RunError: it is another network than the config says.
      ConfigError: a pattern that matches nothing.
    """
    model = network.architecture.model
    expected = dataclasses.replace(config.student, activation_bits=model.activation_bits)
    if config.init_config is not None and reshapes(config.init_config):
        expected = dataclasses.replace(expected, features=model.features, ranks=model.ranks)
    subject = f"{config.init_from or 'the first stage'} does not fit this student"
    weights.check_same(model, expected, subject, "config.student")
    card = dataclasses.replace(network.architecture.card, image_size=config.view.size_for_student)
    network = dataclasses.replace(network, architecture=dataclasses.replace(network.architecture, card=card))
    if config.compress.structure == "channels":
        network = _with_fewer_channels(config, network)
    if config.compress.rank_energy or config.compress.rank_flops:
        network = _factored(config, network)
    if config.student.activation_bits != model.activation_bits:
        network = with_input_ranges(network, config.student.activation_bits)
    return network


def with_input_ranges(network: weights.Network, bits: int) -> weights.Network:
    """The network with inputs of so many bits, or of floats for 0; ranges that are not known are zero."""
    model = dataclasses.replace(network.architecture.model, activation_bits=bits)
    return _rebuilt(network, model, _arrays(network), may_add=True)


def _with_fewer_channels(config: Config, network: weights.Network) -> weights.Network:
    asked, architecture = config.compress, network.architecture
    model = architecture.model
    features = models.features_of(model)
    if not features:
        raise ConfigError(f"config.compress.structure='channels': {model.name!r} has no widths that can be set")

    def abstract(model: ModelConfig) -> weights.Variables:
        return dataclasses.replace(architecture, model=model).abstract_variables()

    found = channels.layers(model, features, abstract)
    chosen = compress.matching("layers", asked.layers, [layer.kernel for layer in found])
    shares = compress.by_layer("layer_sparsity", asked.layer_sparsity, asked.sparsity, chosen)
    folded = {**network.variables, **models.fold(model, network.variables)}
    everywhere = asked.sparsity if asked.scope == "global" else None
    kept = channels.choose(found, _arrays(dataclasses.replace(network, variables=folded)), shares, everywhere)
    smaller = dataclasses.replace(model, features=tuple(map(len, kept)))
    say(f"{network.source}: channels {features} -> {smaller.features}")
    return _rebuilt(network, smaller, channels.cut(found, _arrays(network), kept))


def _factored(config: Config, network: weights.Network) -> weights.Network:
    asked, architecture = config.compress, network.architecture
    model = architecture.build("float32")
    image = jax.ShapeDtypeStruct(architecture.input_shape, jnp.float32)
    applied = jax.eval_shape(lambda v, x: models.kernel_applications(model, v, x), network.variables, image)
    arrays = _arrays(network)
    folded = models.fold(architecture.model, network.variables)["params"] if architecture.model.name == "bit" else None
    kernels = arrays if folded is None else _arrays(dataclasses.replace(network, variables={"params": folded}))

    def kernel(name: str) -> np.ndarray:
        return kernels[f"params/{name}/kernel"]

    positions = {name: (_positions(x.shape), _positions(y.shape)) for name, (x, y) in applied.items()}
    dense = {name: x.shape[-1] == kernel(name).shape[-2] for name, (x, _) in applied.items()}
    names = [f"{name}/kernel" for name, can in dense.items() if can]  # a depthwise one has no factors
    chosen = [name.removesuffix("/kernel") for name in compress.matching("layers", asked.layers, names)]
    count = {name: low_rank.multiplications(kernel(name).shape, *positions[name]) for name in applied}
    if asked.rank_energy:
        ranks = low_rank.ranks_for({name: kernel(name) for name in chosen}, positions, asked.rank_energy)
    else:
        others = sum(count[name] for name in applied if name not in chosen)
        found = low_rank.ranks_for_flops({name: kernel(name) for name in chosen}, positions, others, asked.rank_flops)
        if found is None:
            raise ConfigError(f"config.compress.rank_flops={asked.rank_flops}: even ranks of one need more")
        ranks = found
    after = sum(low_rank.multiplications(kernel(n).shape, *positions[n], ranks.get(n, ())) for n in applied)
    all_ranks = {**models.parse_ranks(architecture.model.ranks), **ranks}
    smaller = dataclasses.replace(architecture.model, ranks=models.format_ranks(all_ranks))
    say(
        f"{network.source}: {', '.join(models.format_ranks(ranks)) or 'no kernel is cheaper factored'}: "
        f"{after / sum(count.values()):.2f} of the multiplications"
    )
    for name, rank in ranks.items():
        factors = low_rank.factorize(kernel(name), rank)
        del arrays[f"params/{name}/kernel"]
        arrays |= {f"params/{name}/{factor}/kernel": value for factor, value in factors.items()}
    return _rebuilt(network, smaller, arrays, may_add=True)


def _positions(shape: tuple[int, ...]) -> int:
    """Of one image: pixels of a map [1, H, W, C], tokens of [1, N, C], 1 of [1, C]."""
    return int(np.prod(shape[1:-1]))


def _arrays(network: weights.Network) -> Arrays:
    leaves = jax.tree_util.tree_leaves_with_path(network.variables)
    return {path_name(path): np.asarray(leaf) for path, leaf in leaves}


def _rebuilt(network: weights.Network, model: ModelConfig, arrays: Arrays, may_add: bool = False) -> weights.Network:
    """The network of another ModelConfig; input ranges that it has and the old one has not are zero."""
    architecture = dataclasses.replace(network.architecture, model=model)

    def leaf(path: jax.tree_util.KeyPath, wanted: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path_name(path)
        if may_add and name not in arrays and name.startswith("batch_stats/"):
            return np.zeros(wanted.shape, np.float32)
        return arrays[name]

    variables = jax.tree_util.tree_map_with_path(leaf, architecture.abstract_variables())
    return weights.Network(architecture, variables, network.source)

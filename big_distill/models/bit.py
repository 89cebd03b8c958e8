"""Implements BiT (Kolesnikov et al. 2020, "Big Transfer", arXiv 1912.11370).

BiT is ResNet-v2 with GroupNorm and weight standardisation. Parameters are named as in the weight files of Beyer et al.
2022, "Knowledge distillation: A good teacher is patient and consistent", arXiv 2106.05237:
`block1/unit01/conv1/kernel`. Scales and biases have shape [C], not [1, 1, 1, C].
"""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from flax import linen as nn

from big_distill.config import ModelConfig
from big_distill.config.checks import require
from big_distill.models.family import Family
from big_distill.models.folding import standardize_kernels
from big_distill.models.layers import GroupNorm, StdConv, head, max_pool
from big_distill.state import Outputs

BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Number of units in each stage, by depth."""


def root_features(width: float) -> int:
    """Computes the channels of the root, 64 at width 1, rounded down."""
    return max(1, int(64 * width))


class Root(nn.Module):
    """Computes a 7 x 7 convolution and a 3 x 3 max-pool, each of stride 2.

    No activation precedes the pool, so its padding matters: 'zero' in the models of Big Transfer, '-inf' in those of
    the distillation release.
    """

    features: int
    pool: str
    dtype: str
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / 4), ceil(W / 4), features]."""
        x = StdConv(self.features, self.dtype, 7, 2, self.folded, name="conv_root")(x)
        if self.pool == "zero":
            return max_pool(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 3, 2)
        return max_pool(x, 3, 2, padding=1)


class Unit(nn.Module):
    """Computes a pre-activation bottleneck.

    It is that of He et al. 2016, "Identity mappings in deep residual networks", arXiv 1603.05027. The 3 x 3 convolution
    has the stride. If the shape changes, a projection of the *activated* input replaces the identity.

    hidden: channels of the first two convolutions.
    """

    features: int
    hidden: tuple[int, int]
    stride: int
    dtype: str
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        conv = functools.partial(StdConv, dtype=self.dtype, folded=self.folded)
        y = nn.relu(GroupNorm(self.dtype, name="gn1")(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.features, size=1, stride=self.stride, name="conv_proj")(y)
        y = conv(self.hidden[0], size=1, name="conv1")(y)
        y = nn.relu(GroupNorm(self.dtype, name="gn2")(y))
        y = conv(self.hidden[1], size=3, stride=self.stride, name="conv2")(y)
        y = nn.relu(GroupNorm(self.dtype, name="gn3")(y))
        y = conv(self.features, size=1, name="conv3")(y)
        return x + y


class Stage(nn.Module):
    """Computes units at one resolution; the first has the stride.

    hidden: two widths a unit, see `Unit`.
    """

    features: int
    hidden: tuple[int, ...]
    stride: int
    dtype: str
    folded: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, ceil(H / stride), ceil(W / stride), features]."""
        for i, hidden in enumerate(zip(self.hidden[::2], self.hidden[1::2], strict=True)):
            stride = self.stride if i == 0 else 1
            x = Unit(self.features, hidden, stride, self.dtype, self.folded, name=f"unit{i + 1:02d}")(x)
        return x


class BiT(nn.Module):
    """Computes the whole network: R50x1 has blocks (3, 4, 6, 3) and width 1.

    blocks: units of each stage; the resolution halves and the channels double from stage to stage.
    features: channels of the first two convolutions of every unit.
    width: factor on the channels, rounded down to whole channels in the root: 0.3 makes 19 of 64.
    root_pool: 'zero' or '-inf', see `Root`.
    folded: True if the kernels are already standardised.

    The last normalisation and all after it are in float32, so that logits are not rounded to bfloat16.
    """

    blocks: tuple[int, ...]
    features: tuple[int, ...]
    width: float
    root_pool: str
    num_classes: int
    dtype: str
    folded: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Takes images [B, H, W, C]."""
        root, hidden = root_features(self.width), iter(self.features)
        x = Root(root, self.root_pool, self.dtype, self.folded, name="root_block")(image)
        maps = []
        for i, num_units in enumerate(self.blocks):
            stride = 1 if i == 0 else 2
            widths = tuple(itertools.islice(hidden, 2 * num_units))
            x = Stage(4 * root * 2**i, widths, stride, self.dtype, self.folded, name=f"block{i + 1}")(x)
            maps.append(x)
        maps[-1] = nn.relu(GroupNorm("float32", name="norm-pre-head")(x))
        embedding = maps[-1].mean((1, 2))
        return Outputs(head(embedding, self.num_classes, nn.initializers.zeros), embedding, tuple(maps))


def _canonical(model: ModelConfig) -> ModelConfig:
    return dataclasses.replace(model, depth=0, blocks=model.blocks or BLOCKS.get(model.depth, ()))


def _build(model: ModelConfig, num_classes: int, dtype: str, folded: bool) -> nn.Module:
    blocks = _canonical(model).blocks
    return BiT(blocks, model.features, model.width, model.root_pool, num_classes, dtype, folded)


def _widths(model: ModelConfig) -> tuple[int, ...]:
    root, stages = root_features(model.width), enumerate(_canonical(model).blocks)
    return tuple(root * 2**i for i, num_units in stages for _ in range(2 * num_units))


def _check(model: ModelConfig, image_size: int, path: str) -> None:
    require(bool(model.depth) != bool(model.blocks), f"{path}: set one of depth and blocks")


FAMILIES = {
    "bit": Family(
        fields=("features", "depth", "blocks", "width", "root_pool"),
        min_image_size=lambda model: 2 ** (1 + len(_canonical(model).blocks)),
        build=_build,
        widths=_widths,
        check=_check,
        fold=standardize_kernels,
        canonical=_canonical,
        int8=True,
        standardizes_kernels=True,
    )
}

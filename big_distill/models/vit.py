"""Implements the Vision Transformer (Dosovitskiy et al. 2021, "An image is worth 16x16 words", arXiv 2010.11929)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from big_distill.config import ModelConfig
from big_distill.config.checks import require
from big_distill.models.family import Family
from big_distill.models.layers import Dense, head
from big_distill.state import Outputs

SIZES = {"vit_small": (384, 12, 6), "vit_base": (768, 12, 12)}
"""Width, depth and number of heads; vit_small is that of Touvron et al. 2021 (DeiT), arXiv 2012.12877."""


class Block(nn.Module):
    """Computes attention, then an MLP with one hidden layer; normalises before each and adds the input after it."""

    hidden: int
    num_heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, N, D] to the same shape."""
        width = x.shape[-1]
        y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            deterministic=True,
            force_fp32_for_softmax=True,
            name="attention",
        )
        x = x + attention(y)
        y = nn.LayerNorm(1e-6, dtype=self.dtype, name="norm2")(x)
        y = _dense(self.hidden, self.dtype, "fc1")(y)
        return x + _dense(width, self.dtype, "fc2")(nn.gelu(y, approximate=False))


class ViT(nn.Module):
    """Computes the whole network: patches, a class token, learned position embeddings, pre-norm blocks, the head.

    The embeddings are for one grid. An image of another size has another grid, and so other parameters.

    features: units of each block's hidden layer, usually four times the width.
    """

    features: tuple[int, ...]
    width: int
    num_heads: int
    patch_size: int
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Takes images [B, H, W, C]; H and W are multiples of patch_size."""
        x = _dense(self.width, self.dtype, "embedding")(_patches(image, self.patch_size))
        cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (len(x), 1, self.width)).astype(x.dtype), x], axis=1)
        positions = self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = x + positions.astype(x.dtype)
        for i, hidden in enumerate(self.features, 1):
            x = Block(hidden, self.num_heads, self.dtype, name=f"block{i:02d}")(x)
        norm = nn.LayerNorm(1e-6, dtype="float32", name="norm")
        embedding, tokens = norm(x[:, 0]), norm(x[:, 1:])  # two calls: the second costs nothing if nobody reads it
        grid = tokens.reshape(len(x), image.shape[1] // self.patch_size, -1, self.width)
        return Outputs(head(embedding, self.num_classes, nn.initializers.zeros), embedding, (grid,))


def _dense(features: int, dtype: str, name: str) -> Dense:
    return Dense(features, dtype, nn.initializers.xavier_uniform(), name=name)


def _patches(image: jax.Array, size: int) -> jax.Array:
    """Cuts [B, H, W, C] into patches [B, N, size * size * C], row by row."""
    batch, height, width, channels = image.shape
    x = image.reshape(batch, height // size, size, width // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)


def _build(model: ModelConfig, num_classes: int, dtype: str, folded: bool) -> nn.Module:
    width, _, num_heads = SIZES[str(model.name)]
    return ViT(model.features, width, num_heads, model.patch_size, num_classes, dtype)


def _widths(model: ModelConfig) -> tuple[int, ...]:
    width, depth, _ = SIZES[str(model.name)]
    return (4 * width,) * depth


def _check(model: ModelConfig, image_size: int, path: str) -> None:
    require(
        image_size % model.patch_size == 0,
        f"{path}.patch_size={model.patch_size} does not divide an image of {image_size} px",
    )


FAMILIES = dict.fromkeys(
    SIZES, Family(("features", "patch_size"), lambda model: model.patch_size, _build, _widths, _check)
)

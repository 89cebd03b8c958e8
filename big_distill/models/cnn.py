"""The small networks of the compression and distillation papers.

None reads `train`: they have neither dropout nor BatchNorm. The last layer is in float32 whatever the dtype, so that
logits are not rounded to bfloat16.
"""

from __future__ import annotations

import functools

import jax
from flax import linen as nn

from big_distill.models.layers import Conv, Dense, max_pool


class MLP(nn.Module):
    """Dense layers with ReLU; features (300, 100) make LeNet-300-100 (LeCun et al. 1998, "Gradient-based learning")."""

    features: tuple[int, ...]
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> logits [B, K]."""
        x = _flatten(image)
        for i, features in enumerate(self.features, 1):
            x = nn.relu(Dense(features, self.dtype, name=f"fc{i}")(x))
        return Dense(self.num_classes, "float32", name="head")(x)


LENET5 = (20, 50, 500)
SIX_LAYER = (32, 32, 64, 64, 256)


class LeNet5(nn.Module):
    """Caffe's LeNet-5, which Han et al. 2016, "Deep Compression", prune: 431,080 parameters on MNIST.

    Unlike the network of 1998 it is 20-50-500-K wide, has max-pools, and no nonlinearity follows its convolutions.
    """

    features: tuple[int, ...]
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> logits [B, K]."""
        x = Conv(self.features[0], self.dtype, 5, padding="VALID", name="conv1")(image)
        x = max_pool(x, 2, 2)
        x = Conv(self.features[1], self.dtype, 5, padding="VALID", name="conv2")(x)
        x = max_pool(x, 2, 2)
        x = nn.relu(Dense(self.features[2], self.dtype, name="fc1")(_flatten(x)))
        return Dense(self.num_classes, "float32", name="head")(x)


class CNN(nn.Module):
    """Teacher (256, 512) and student (16, 32) of the "Knowledge Distillation" example of Keras.

    As there, the second convolution has no activation.
    """

    features: tuple[int, ...]
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> logits [B, K]."""
        x = Conv(self.features[0], self.dtype, 3, stride=2, name="conv1")(image)
        x = nn.leaky_relu(x, 0.2)
        x = max_pool(x, 2, 1, "SAME")
        x = Conv(self.features[1], self.dtype, 3, stride=2, name="conv2")(x)
        return Dense(self.num_classes, "float32", name="head")(_flatten(x))


class SixLayerCNN(nn.Module):
    """Four 3 x 3 convolutions, a max-pool after each pair, two dense layers; ReLU between; 32-32-64-64-256-K wide."""

    features: tuple[int, ...]
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> jax.Array:
        """[B, H, W, C] -> logits [B, K]."""
        conv = functools.partial(Conv, size=3, dtype=self.dtype)
        x = nn.relu(conv(self.features[0], name="conv1")(image))
        x = nn.relu(conv(self.features[1], name="conv2")(x))
        x = max_pool(x, 2, 2)
        x = nn.relu(conv(self.features[2], name="conv3")(x))
        x = nn.relu(conv(self.features[3], name="conv4")(x))
        x = max_pool(x, 2, 2)
        x = nn.relu(Dense(self.features[4], self.dtype, name="fc1")(_flatten(x)))
        return Dense(self.num_classes, "float32", name="head")(x)


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)

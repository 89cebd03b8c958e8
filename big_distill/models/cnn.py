"""Implements the small networks of the compression and distillation papers.

They do not read `train`, because they have no dropout and no BatchNorm. The last layer is in float32 for any dtype, so
that logits are not rounded to bfloat16.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
from flax import linen as nn

from big_distill.config import ModelConfig
from big_distill.config.checks import require
from big_distill.models.family import Family
from big_distill.models.layers import Conv, Dense, head, max_pool
from big_distill.state import Outputs


class MLP(nn.Module):
    """Computes dense layers with ReLU.

    Features (300, 100) make LeNet-300-100 (LeCun et al. 1998, "Gradient-based learning").
    """

    features: tuple[int, ...]
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Takes images [B, H, W, C]."""
        x = _flatten(image)
        for i, features in enumerate(self.features, 1):
            x = nn.relu(Dense(features, self.dtype, name=f"fc{i}")(x))
        return Outputs(head(x, self.num_classes), x)


class LeNet5(nn.Module):
    """Implements Caffe's LeNet-5, which Han et al. 2016, "Deep Compression", prune: 431,080 parameters on MNIST.

    Unlike the network of 1998 it is 20-50-500-K wide, has max-pools, and has no nonlinearity after its convolutions.
    """

    features: tuple[int, ...]
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Takes images [B, H, W, C]."""
        x = Conv(self.features[0], self.dtype, 5, padding="VALID", name="conv1")(image)
        first = max_pool(x, 2, 2)
        x = Conv(self.features[1], self.dtype, 5, padding="VALID", name="conv2")(first)
        second = max_pool(x, 2, 2)
        x = nn.relu(Dense(self.features[2], self.dtype, name="fc1")(_flatten(second)))
        return Outputs(head(x, self.num_classes), x, (first, second))


class CNN(nn.Module):
    """Implements teacher (256, 512) and student (16, 32) of the "Knowledge Distillation" example of Keras.

    The second convolution has no activation, as in that example.
    """

    features: tuple[int, ...]
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Takes images [B, H, W, C]."""
        x = Conv(self.features[0], self.dtype, 3, stride=2, name="conv1")(image)
        x = nn.leaky_relu(x, 0.2)
        first = max_pool(x, 2, 1, "SAME")
        second = Conv(self.features[1], self.dtype, 3, stride=2, name="conv2")(first)
        x = _flatten(second)
        return Outputs(head(x, self.num_classes), x, (first, second))


class SixLayerCNN(nn.Module):
    """Computes four 3 x 3 convolutions, a max-pool after each pair, and two dense layers, with ReLU between.

    It is 32-32-64-64-256-K wide.
    """

    features: tuple[int, ...]
    num_classes: int
    dtype: str

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Outputs:
        """Takes images [B, H, W, C]."""
        conv = functools.partial(Conv, size=3, dtype=self.dtype)
        x = nn.relu(conv(self.features[0], name="conv1")(image))
        x = nn.relu(conv(self.features[1], name="conv2")(x))
        first = max_pool(x, 2, 2)
        x = nn.relu(conv(self.features[2], name="conv3")(first))
        x = nn.relu(conv(self.features[3], name="conv4")(x))
        second = max_pool(x, 2, 2)
        x = nn.relu(Dense(self.features[4], self.dtype, name="fc1")(_flatten(second)))
        return Outputs(head(x, self.num_classes), x, (first, second))


def _flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def _family(
    network: Callable[[tuple[int, ...], int, str], nn.Module],
    min_image_size: int,
    widths: tuple[int, ...] = (),
    check: Callable[[ModelConfig, int, str], None] = lambda *_: None,
) -> Family:
    def build(model: ModelConfig, num_classes: int, dtype: str, folded: bool) -> nn.Module:
        return network(model.features, num_classes, dtype)

    return Family(("features",), lambda model: min_image_size, build, lambda model: widths, check)


def _check_cnn(model: ModelConfig, image_size: int, path: str) -> None:
    require(len(model.features) == 2, f"{path}.features={model.features}: a cnn has two, as (16,32)")


FAMILIES = {
    "mlp": _family(MLP, 1),
    "lenet5": _family(LeNet5, 16, (20, 50, 500)),
    "cnn": _family(CNN, 4, check=_check_cnn),
    "six_layer_cnn": _family(SixLayerCNN, 4, (32, 32, 64, 64, 256)),
}

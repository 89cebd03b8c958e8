"""Makes a small network of every family, with its logits of some images by JAX."""

import dataclasses
import functools

import jax
import numpy as np
from tiers import cases

from big_distill.config import ModelConfig
from big_distill.state import Card
from big_distill.step.views import for_network, to_unit
from big_distill.weights import ConfigArchitecture, Network

K = 7
OFTEN = ("mlp_smaller_than_its_view", "cnn", "bit_zero", "vit")  # the others take longer to compile
FAMILIES = {  # id -> (config, side of the pixels, channels, side that the network sees)
    "mlp_smaller_than_its_view": (ModelConfig("mlp", features=(30, 10)), 9, 3, 6),
    "lenet5": (ModelConfig("lenet5"), 20, 1, 20),
    "cnn": (ModelConfig("cnn", features=(4, 6)), 8, 1, 8),
    "six_layer_cnn": (ModelConfig("six_layer_cnn"), 9, 3, 9),
    "bit": (ModelConfig("bit", blocks=(2, 1), width=0.25), 32, 3, 32),
    "bit_zero": (ModelConfig("bit", blocks=(1,), width=0.3, root_pool="zero"), 17, 3, 17),
    "lite": (ModelConfig("efficientnet_lite2", blocks=(1,) * 7, width=0.25), 32, 3, 32),
    "lite_symmetric": (
        ModelConfig("efficientnet_lite0", blocks=(1, 2, 1, 1, 1, 1, 1), width=0.2, padding="symmetric"),
        32,
        3,
        32,
    ),
    "mobile": (ModelConfig("mobilenet_v3_large", blocks=(1,) * 6, width=0.25), 32, 3, 32),
    "mobile_group": (ModelConfig("mobilenet_v3_large", blocks=(1,) * 6, width=0.2, norm="group"), 32, 3, 32),
    "vit": (ModelConfig("vit_small", patch_size=4), 12, 3, 12),
}
EACH = cases(*OFTEN, full=[family for family in FAMILIES if family not in OFTEN])


@dataclasses.dataclass(frozen=True)
class Example:
    """Holds a network, images and their logits."""

    network: Network
    pixels: np.ndarray
    logits: np.ndarray

    def check(self, classify, count=5):
        """Asserts that a file has JAX's logits up to rounding, relative to how much they differ between images."""
        got, want = classify(self.pixels[:count]), self.logits[:count]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=3e-6, atol=2e-4 * self.logits.std(0).mean())


@functools.cache
def make_example(family):
    config, size, channels, network_size = FAMILIES[family]
    card = Card(network_size, (0.4, 0.5, 0.6)[:channels], (0.2, 0.25, 0.3)[:channels], tuple("abcdefg"))
    architecture = ConfigArchitecture(config, K, channels, size, card, size)
    variables = random_variables(architecture.abstract_variables())
    rng = np.random.default_rng(1)
    contrast = rng.integers(5, 256, (5, 1, 1, channels))
    pixels = rng.integers(0, contrast, (5, size, size, channels), np.uint8)

    @jax.jit
    def logits(variables, pixels):
        model = architecture.build("float32")
        return model.apply(variables, for_network(to_unit(pixels), card), train=False)[0].logits

    return Example(Network(architecture, variables), pixels, np.asarray(logits(variables, pixels)))


def random_variables(shapes):
    """Draws variables: none is zero, kernels have a mean, and BatchNorm's statistics are far from 0 and 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if "var" in jax.tree_util.keystr(path):
            return rng.uniform(0.3, 3, leaf.shape).astype("f")
        fan_in = int(np.prod(leaf.shape[:-1]))
        return (1.5 * rng.normal(0.02, size=leaf.shape) / np.sqrt(fan_in)).astype("f")

    return jax.tree.map_with_path(draw, shapes)

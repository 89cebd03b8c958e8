"""Makes small programs for slices that are not there, and reads their compiled texts, `*.hlo.gz` beside this file.

`python tests/planning/hlo/slice_programs.py` compiles them anew with the installed libtpu and CUDA plugin. It needs
neither TPU nor GPU. The kept texts are from JAX 0.10.2 and libtpu 0.0.42. Sums by hand are in `test_hlo.py`.
"""

import gzip
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from big_distill.planning import chips

HERE = pathlib.Path(__file__).parent
TOPOLOGIES = {"scans": "v5e:2x4", "sharded": "v5e:2x4", "permuted": "v5e:2x4", "convolutions": "a100:8"}


def text_of(name):
    """Reads the kept text, as the compiler wrote it."""
    return gzip.decompress((HERE / f"{name}.hlo.gz").read_bytes()).decode()


def compile_text(name):
    """Compiles the text with the installed compiler."""
    where = chips.open_slice(TOPOLOGIES[name])
    mesh = Mesh(np.array(where.devices), ("data",))

    def array(shape, dtype, *spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    return globals()[name](array).compile(compiler_options=dict(where.compiler_options) or None).as_text()


def scans(array):
    """Computes five products in each of nine turns."""

    def outer(w, xs):
        def inner(carry, x):
            return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), carry + x, length=5)[0], None

        return jax.lax.scan(inner, jnp.zeros((64, 512)), xs)[0]

    return jax.jit(outer).lower(array((512, 512), "float32"), array((9, 64, 512), "float32"))


def sharded(array):
    """Computes a step of four layers whose weights are split over all chips."""

    def loss(weights, x):
        for w in weights:
            x = jnp.tanh(x @ w)
        return (x.astype(jnp.float32) ** 2).mean()

    def step(weights, x):
        return [w - 0.1 * g for w, g in zip(weights, jax.grad(loss)(weights, x), strict=True)]

    weights = [array((4096, 4096), "bfloat16", "data")] * 4
    jitted = jax.jit(step, out_shardings=[w.sharding for w in weights], donate_argnums=0)
    return jitted.lower(weights, array((4096, 4096), "bfloat16", "data"))


def permuted(array):
    """Sends rows to the next chip, and to the opposite one."""
    return jax.jit(lambda x: (jnp.roll(x, 1, 0), jnp.flip(x, 0))).lower(array((64, 4096), "float32", "data"))


def convolutions(array):
    """Computes the gradients of two convolutions and a product."""

    def loss(weights, x):
        for kernel, stride in zip(weights[:2], (2, 1), strict=True):
            x = jax.nn.relu(jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, "SAME", dimension_numbers=layout))
        return (jnp.tanh(x.mean((1, 2)) @ weights[2]) ** 2).astype(jnp.float32).sum()

    layout = ("NHWC", "HWIO", "NHWC")
    shapes = (3, 3, 32, 64), (3, 3, 64, 64), (64, 512)
    weights = [array(shape, "bfloat16") for shape in shapes]
    everywhere = [w.sharding for w in weights]
    return jax.jit(jax.grad(loss), out_shardings=everywhere).lower(
        weights, array((512, 64, 64, 32), "bfloat16", "data")
    )


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    for program in TOPOLOGIES:
        text = compile_text(program).replace(str(HERE), "")
        text = re.sub(r'(, )?metadata=\{[^"}]*("[^"]*"[^"}]*)*\}', "", text)
        text = re.sub(r"(?ms)^FileNames$.*?^(?=%|ENTRY)", "", text)
        (HERE / f"{program}.hlo.gz").write_bytes(gzip.compress(text.encode(), mtime=0))

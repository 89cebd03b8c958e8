"""The networks in NumPy and float64, written from their definitions: windows one by one, two-pass moments."""

import math

import numpy as np


def _same(n, size, stride):
    """(before, after) of SAME: the output has ceil(n / stride) pixels, an odd pixel of padding goes after."""
    total = max((math.ceil(n / stride) - 1) * stride + size - n, 0)
    return total // 2, total - total // 2


def _pad(x, size, stride, padding, value):
    if padding == "SAME":
        pads = _same(x.shape[1], size, stride), _same(x.shape[2], size, stride)
    else:
        pads = ((padding, padding),) * 2
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _windows(x, size, stride):
    """[B, H, W, C] -> [B, H', W', size, size, C], one output pixel at a time."""
    height, width = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    rows = [
        [x[:, stride * i : stride * i + size, stride * j : stride * j + size] for j in range(width)]
        for i in range(height)
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


def conv(x, params, stride=1, padding="SAME"):
    kernel = params["kernel"]
    size = kernel.shape[0]
    y = np.einsum("bhwijc,ijco->bhwo", _windows(_pad(x, size, stride, padding, 0), size, stride), kernel, optimize=True)
    return y + params.get("bias", 0)


def max_pool(x, size, stride, padding=0, value=-np.inf):
    return _windows(_pad(x, size, stride, padding, value), size, stride).max((3, 4))


def dense(x, params):
    return x.reshape(len(x), -1) @ params["kernel"] + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def standardize(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def group_norm(x, params):
    groups = math.gcd(32, x.shape[-1])
    y = standardize(x.reshape(*x.shape[:3], groups, -1), (1, 2, 4), 1e-5).reshape(x.shape)
    return y * params["scale"] + params["bias"]


def std_conv(x, params, stride=1):
    kernel = standardize(params["kernel"], (0, 1, 2), 1e-10)
    return conv(x, {"kernel": kernel}, stride, padding=kernel.shape[0] // 2)


def mlp(params, x):
    for i in range(1, len(params)):
        x = relu(dense(x, params[f"fc{i}"]))
    return dense(x, params["head"])


def lenet5(params, x):
    x = max_pool(conv(x, params["conv1"], padding=0), 2, 2)
    x = max_pool(conv(x, params["conv2"], padding=0), 2, 2)
    return dense(relu(dense(x, params["fc1"])), params["head"])


def cnn(params, x):
    x = conv(x, params["conv1"], stride=2)
    x = max_pool(np.where(x > 0, x, 0.2 * x), 2, 1, "SAME")
    return dense(conv(x, params["conv2"], stride=2), params["head"])


def six_layer_cnn(params, x):
    for first, second in (("conv1", "conv2"), ("conv3", "conv4")):
        x = relu(conv(relu(conv(x, params[first])), params[second]))
        x = max_pool(x, 2, 2)
    return dense(relu(dense(x, params["fc1"])), params["head"])


def bit(params, x, root_pool):
    x = std_conv(x, params["root_block"]["conv_root"], stride=2)
    x = max_pool(x, 3, 2, padding=1, value={"zero": 0, "-inf": -np.inf}[root_pool])
    for block in sorted(name for name in params if name.startswith("block")):
        for unit, p in sorted(params[block].items()):
            stride = 2 if unit == "unit01" and block != "block1" else 1
            y = relu(group_norm(x, p["gn1"]))
            if "conv_proj" in p:
                x = std_conv(y, p["conv_proj"], stride)
            y = relu(group_norm(std_conv(y, p["conv1"]), p["gn2"]))
            y = relu(group_norm(std_conv(y, p["conv2"], stride), p["gn3"]))
            x = x + std_conv(y, p["conv3"])
    return dense(relu(group_norm(x, params["norm-pre-head"])).mean((1, 2)), params["head"])

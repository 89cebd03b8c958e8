"""Computes the networks in NumPy and float64, from their definitions: windows one by one, two-pass moments."""

import math

import numpy as np
from scipy.special import erf


def _same(n, size, stride):
    """Returns SAME's padding (before, after): the output has ceil(n / stride) pixels, and an odd pixel goes after."""
    total = max((math.ceil(n / stride) - 1) * stride + size - n, 0)
    return total // 2, total - total // 2


def _pad(x, size, stride, padding, value):
    if padding == "SAME":
        pads = _same(x.shape[1], size, stride), _same(x.shape[2], size, stride)
    else:
        pads = ((padding, padding),) * 2
    return np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=value)


def _windows(x, size, stride):
    """Maps [B, H, W, C] to [B, H', W', size, size, C], one output pixel at a time."""
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


def relu6(x):
    return np.clip(x, 0, 6)


def hard_sigmoid(x):
    return relu6(x + 3) / 6


def hard_swish(x):
    return x * hard_sigmoid(x)


def gelu(x):
    return x * (1 + erf(x / np.sqrt(2))) / 2


def standardize(x, axes, eps):
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)


def group_norm(x, params, num_groups=32):
    groups = math.gcd(num_groups, x.shape[-1])
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


def layer_norm(x, params):
    return standardize(x, -1, 1e-6) * params["scale"] + params["bias"]


def depthwise_conv(x, kernel, stride, padding):
    size = kernel.shape[0]
    return np.einsum("bhwijc,ijc->bhwc", _windows(_pad(x, size, stride, padding, 0), size, stride), kernel[:, :, 0])


def conv_norm(variables, path, x, stride=1, *, padding, train=False):
    """Computes a convolution (depthwise by its kernel's shape) and BatchNorm, or GroupNorm without statistics."""
    params, stats = variables["params"], variables.get("batch_stats", {})
    for name in path.split("/"):
        params, stats = params[name], stats.get(name, {})
    kernel = params["kernel"]
    pads = "SAME" if padding == "same" else kernel.shape[0] // 2
    if kernel.shape[2] == x.shape[-1]:
        x = conv(x, {"kernel": kernel}, stride, pads)
    else:
        x = depthwise_conv(x, kernel, stride, pads)
    if not stats:
        return group_norm(x, params["norm"], 8)
    mean, variance = stats["norm"]["mean"], stats["norm"]["var"]
    if train:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    epsilon = {"same": 1e-3, "symmetric": 1e-5}[padding]
    return (x - mean) / np.sqrt(variance + epsilon) * params["norm"]["scale"] + params["norm"]["bias"]


def inverted_residual(variables, unit, x, stride, activation, conv_norm):
    params, y = variables["params"][unit], x
    if "expand" in params:
        y = activation(conv_norm(variables, f"{unit}/expand", y))
    y = activation(conv_norm(variables, f"{unit}/depthwise", y, stride))
    if "squeeze_excite" in params:
        squeezed = relu(dense(y.mean((1, 2)), params["squeeze_excite"]["reduce"]))
        y = y * hard_sigmoid(dense(squeezed, params["squeeze_excite"]["expand"]))[:, None, None]
    y = conv_norm(variables, f"{unit}/project", y)
    return y + x if y.shape == x.shape else y


def efficientnet_lite(variables, x, strides, conv_norm):
    x = relu6(conv_norm(variables, "stem", x, 2))
    for i, stride in enumerate(strides, 1):
        x = inverted_residual(variables, f"unit{i:02d}", x, stride, relu6, conv_norm)
    x = relu6(conv_norm(variables, "last", x))
    return dense(x.mean((1, 2)), variables["params"]["head"])


def mobilenet_v3(variables, x, strides, activations, conv_norm):
    x = hard_swish(conv_norm(variables, "stem", x, 2))
    for i, (stride, activation) in enumerate(zip(strides, activations, strict=True), 1):
        x = inverted_residual(variables, f"unit{i:02d}", x, stride, activation, conv_norm)
    x = hard_swish(conv_norm(variables, "last", x)).mean((1, 2))
    return dense(hard_swish(dense(x, variables["params"]["pre_head"])), variables["params"]["head"])


def attention(x, params):
    """Computes attention, one head at a time."""
    heads = []
    for i in range(params["query"]["bias"].shape[0]):
        q, k, v = (x @ params[name]["kernel"][:, i] + params[name]["bias"][i] for name in ("query", "key", "value"))
        scores = np.exp(q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]))
        heads.append(scores / scores.sum(-1, keepdims=True) @ v @ params["out"]["kernel"][i])
    return sum(heads) + params["out"]["bias"]


def vit(params, x, patch_size):
    patches = _windows(x, patch_size, patch_size)
    tokens = patches.reshape(len(x), -1, np.prod(patches.shape[3:])) @ params["embedding"]["kernel"]
    tokens += params["embedding"]["bias"]
    x = np.concatenate([np.tile(params["cls"], (len(x), 1, 1)), tokens], axis=1) + params["pos_embedding"]
    for _, p in sorted((name, p) for name, p in params.items() if name.startswith("block")):
        x = x + attention(layer_norm(x, p["norm1"]), p["attention"])
        y = gelu(layer_norm(x, p["norm2"]) @ p["fc1"]["kernel"] + p["fc1"]["bias"])
        x = x + y @ p["fc2"]["kernel"] + p["fc2"]["bias"]
    return dense(layer_norm(x[:, 0], params["norm"]), params["head"])

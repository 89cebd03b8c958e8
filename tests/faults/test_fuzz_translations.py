"""Checks that other projects' networks with missing, misnamed or misshapen arrays are translated, or give one line."""

import pathlib

import numpy as np
import pytest
import test_timm_names as timm
from hypothesis import given
from hypothesis import strategies as st
from mutations import assert_one_line, bounded

from big_distill.config import ModelConfig
from big_distill.errors import RunError
from big_distill.weights.pretrained import formats


def vit():
    return {
        "patch_embed.proj.weight": np.zeros((384, 3, 16, 16), np.float32),
        "pos_embed": np.zeros((1, 5, 384), np.float32),
        "head.weight": np.zeros((7, 384), np.float32),
        "blocks.0.attn.qkv.weight": np.zeros((1152, 384), np.float32),
    }


def states():
    """Maps file names to state dicts."""
    bit = timm.random_arrays(ModelConfig("bit", blocks=(1, 1), width=0.125))
    mobile = timm.random_arrays(ModelConfig("mobilenet_v3_large"))
    lite = timm.random_arrays(ModelConfig("efficientnet_lite0"))
    return {
        "bit.npz": {name.removeprefix("params/"): array for name, array in bit.items()},
        "bit.pth": timm.timm_bit(bit, (1, 1)),
        "tf_mobilenetv3_large_100.pth": timm.timm_mobile(mobile, timm.LARGE_STAGES),
        "tf_efficientnet_lite0.pth": timm.timm_mobile(lite, timm.LITE_STAGES[0]),
        "lite.pth": timm.package_lite(lite, timm.LITE_STAGES[0]),
        "vit.pth": vit(),
    }


@pytest.fixture(scope="module")
def whole():
    return states()


NUMBERS = st.sampled_from(("0", "00", "1", "02", "9", "99", "-1", "x", "", "9" * 30))


@given(data=st.data())
def test_fuzzed_states(data, whole):
    name = data.draw(st.sampled_from(sorted(whole)))
    arrays = dict(whole[name])
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from(sorted(arrays)))
        match data.draw(st.sampled_from(("drop", "swap", "rename", "reshape", "reshape"))):
            case "drop":
                del arrays[key]
            case "swap":
                other = data.draw(st.sampled_from(sorted(arrays)))
                arrays[key], arrays[other] = arrays[other], arrays[key]
            case "rename" if digits := [i for i, letter in enumerate(key) if letter.isdigit()]:
                at = data.draw(st.sampled_from(digits))
                arrays[f"{key[:at]}{data.draw(NUMBERS)}{key[at + 1 :]}"] = arrays.pop(key)
            case "reshape":
                arrays[key] = np.zeros(data.draw(st.lists(st.integers(0, 5), max_size=5)), np.float32)
        if not arrays:
            break
    with bounded(megabytes=200):
        try:
            found = formats.translate(arrays, pathlib.Path(name), name)
        except RunError as error:
            return assert_one_line(error, name)
    assert found.num_classes >= 0 and all(array.dtype == np.float32 for array in found.arrays.values())

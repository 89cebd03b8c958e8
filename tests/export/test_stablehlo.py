"""Checks that StableHLO files compute what the network does, on each of their platforms."""

import jax
import numpy as np
import pytest
from jax import export

from big_distill.errors import DataError, RunError
from big_distill.export import stablehlo


def test_logits_are_the_networks(example, tmp_path):
    stablehlo.write(tmp_path / "net.stablehlo", example.network)
    example.check(stablehlo.read(tmp_path / "net.stablehlo"))


def test_one_file_is_for_all_batch_sizes(make, tmp_path):
    stablehlo.write(tmp_path / "net", make("cnn").network)
    classify = stablehlo.read(tmp_path / "net")
    for count in (3, 1):
        make("cnn").check(classify, count)


@pytest.mark.full
def test_one_file_is_for_all_platforms(make, tmp_path):
    stablehlo.write(tmp_path / "net", make("mobile").network)
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    exported = export.deserialize(bytearray((tmp_path / "net").read_bytes()))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    batch, *_ = exported.in_avals[0].shape
    assert not isinstance(batch, int) and exported.out_avals[0].shape == (batch, 7)
    lowered = jax.jit(exported.call).trace(np.zeros((2, 32, 32, 3), np.uint8)).lower(lowering_platforms=("tpu",))
    assert "feature_group_count = 16" in lowered.as_text(), "TPUs get depthwise convolutions"


@pytest.mark.parametrize("pixels", [np.zeros((2, 8, 8, 1)), np.zeros((2, 8, 7, 1), "u1"), np.zeros((0, 8, 8, 1), "u1")])
def test_other_pixels_are_refused(make, tmp_path, pixels):
    stablehlo.write(tmp_path / "net", make("cnn").network)
    with pytest.raises(DataError, match=rf"^pixels are {pixels.dtype} .*: expected uint8 \[B, 8, 8, 1\]$"):
        stablehlo.read(tmp_path / "net")(pixels)


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_damaged_file(make, tmp_path, kept):
    path = tmp_path / "net"
    stablehlo.write(path, make("cnn").network)
    data = path.read_bytes()
    path.write_bytes(data[: kept if kept > 1 else int(kept * len(data))])
    with pytest.raises(RunError, match=r"net is not a StableHLO file that this JAX reads: [^\n]*$"):
        stablehlo.read(path)


def test_a_file_with_damaged_stablehlo(make, tmp_path):
    path = tmp_path / "net"
    stablehlo.write(path, make("cnn").network)
    data = path.read_bytes()
    start = data.index(b"StableHLO_v")
    path.write_bytes(data[:start] + bytes(100) + data[start + 100 :])
    with pytest.raises(RunError, match=r"net is not a StableHLO file that this JAX reads: [^\n]*$"):
        stablehlo.read(path)


@pytest.mark.parametrize("data", [None, bytes(1000), bytes(range(256)) * 20, b"PK\3\4" * 300])
def test_another_file(tmp_path, data):
    if data is not None:
        (tmp_path / "net").write_bytes(data)
    with pytest.raises(RunError, match=r"net is not a StableHLO file"):
        stablehlo.read(tmp_path / "net")

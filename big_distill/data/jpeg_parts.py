"""Decodes a part of a JPEG by NVIDIA's nvImageCodec, on the CPU. It is the one package with this call of libjpeg-turbo.

The extra `jpeg` installs it. It needs no GPU. It lets nobody choose among its decoders for CPUs, so all of them may be
asked. It asks libjpeg-turbo first for a JPEG. It could read many other kinds of file, but this module refuses them.
"""

from __future__ import annotations

import os
import threading

import numpy as np

from big_distill.terminal import silent

os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # else it prints two lines for every part that it cannot decode
with silent():  # it prints that the libraries of a GPU are missing
    import nvidia.nvimgcodec as nvimgcodec  # `from nvidia` may not raise ModuleNotFoundError

_COLOURS = {3: nvimgcodec.ColorSpec.SRGB, 1: nvimgcodec.ColorSpec.GRAY}
_PARAMS = {c: nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=spec) for c, spec in _COLOURS.items()}


class _Decoder(threading.local):
    """Holds one decoder per thread, because two threads must not use a decoder at the same time."""

    def __init__(self) -> None:
        self.decode = nvimgcodec.Decoder(
            device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=1,
            backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
            options="libjpeg_turbo_decoder:fancy_upsampling=1",  # the default of all other decoders
        ).decode


_decoder = _Decoder()


def decode_box(data: bytes, channels: int, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """Decodes a box, uint8 [height, width, channels], of a colour (3) or grey (1) JPEG.

    Returns None if the file has a fault in the box or above it, or is no JPEG.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    region = nvimgcodec.Region(top, left, top + height, left + width)
    try:
        part = nvimgcodec.CodeStream(data).get_sub_code_stream(region=region)
        image = _decoder.decode(part, params=_PARAMS[channels])
    except RuntimeError:
        return None
    return None if image is None else np.asarray(image)

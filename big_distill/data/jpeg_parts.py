"""A part of a JPEG by NVIDIA's nvImageCodec, on the CPU: the one package with this call of libjpeg-turbo.

The extra `jpeg` installs it. It needs no GPU. All its decoders for CPUs may be asked, as it lets no one choose among
them, and for JPEGs libjpeg-turbo is asked first; of other files it would read many kinds, which are refused here.
"""

from __future__ import annotations

import os
import threading

import numpy as np

from big_distill.terminal import silent

os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # or it prints two lines for every part that it cannot decode
with silent():  # it misses the libraries of a GPU aloud
    import nvidia.nvimgcodec as nvimgcodec  # `from nvidia` would miss it by another error than a module's

_COLOURS = {3: nvimgcodec.ColorSpec.SRGB, 1: nvimgcodec.ColorSpec.GRAY}
_PARAMS = {c: nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=spec) for c, spec in _COLOURS.items()}


class _Decoder(threading.local):
    """One a thread: a decoder is not to be used by two at a time."""

    def __init__(self) -> None:
        self.decode = nvimgcodec.Decoder(
            device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=1,
            backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
            options="libjpeg_turbo_decoder:fancy_upsampling=1",  # as everyone else's
        ).decode


_decoder = _Decoder()


def decode_box(data: bytes, channels: int, top: int, left: int, height: int, width: int) -> np.ndarray | None:
    """Decodes a box, uint8 [height, width, channels], of a colour (3) or grey (1) JPEG.

    Returns None if it has a fault there or above, or is no JPEG.
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

"""A LiteRT model in floats, as integers: the ranges of its tensors on real images, then TensorFlow's quantiser.

The ranges are found here, for TensorFlow 2.21 takes wrong ones: it looks at the inputs of an operation after that has
run, and additions and products may by then have overwritten them. A squeeze-excite on a map of one pixel was all zeros.
"""

from __future__ import annotations

import numpy as np

Range = tuple[float, float]


def quantized(model: bytes, images: np.ndarray) -> bytes:
    """The model with kernels in int8 with a scale for each filter, and everything else with one for each tensor.

    Jacob et al. 2018 (arXiv 1712.05877).

    Args:
      model: of one image in float32.
      images: float32 [N, S, S, C].

    Returns:
      The model of one image in uint8, whose output is int8.
    """
    import tensorflow as tf
    from tensorflow.lite.python import convert, schema_py_generated, util
    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    for index, (low, high) in _ranges(model, images).items():
        tensor = content.subgraphs[0].tensors[index]
        tensor.quantization = tensor.quantization or schema_py_generated.QuantizationParametersT()
        tensor.quantization.min, tensor.quantization.max = [low], [high]
    integers = convert.mlir_quantize(bytes(flatbuffer_utils.convert_object_to_bytearray(content)))
    return bytes(util.modify_model_io_type(integers, tf.uint8, tf.int8))


def _ranges(model: bytes, images: np.ndarray) -> dict[int, Range]:
    """The smallest and the largest value of every tensor that is computed, and of the input, by its index."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model,
        experimental_preserve_all_tensors=True,  # none overwrites another
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    (pixels,) = interpreter.get_input_details()
    outputs = [int(index) for operation in interpreter._get_ops_details() for index in operation["outputs"]]
    ranges: dict[int, Range] = {}
    for image in images:
        interpreter.set_tensor(pixels["index"], image[None])
        interpreter.invoke()
        for index in (int(pixels["index"]), *outputs):
            value = interpreter.get_tensor(index)
            low, high = ranges.get(index, (np.inf, -np.inf))
            ranges[index] = min(low, float(value.min())), max(high, float(value.max()))
    return ranges

"""A trained network as a file that runs without this library: StableHLO, ONNX and LiteRT.

Such a file computes `function.pixels_to_logits`: from the bytes of an image to logits, normalisation included.
`formats` is the table of formats: each has a `write`, and an executable one a `read` that runs the file.
"""

"""A trained network as a file that other programs run: StableHLO, ONNX and LiteRT.

A file computes `function.pixels_to_logits`: from the bytes of an image to logits, normalisation included. `formats` is
the table of formats: each has a `write`, and an executable one a `read` that runs the file as other programs would.
"""

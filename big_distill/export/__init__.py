"""Writes a trained network as a file that runs without this library: StableHLO, ONNX or LiteRT.

Such a file computes `function.pixels_to_logits`: it maps uint8 pixels to logits, normalisation included.
`formats` holds the table of formats. Each has a `write`; an executable one also has a `read` that runs the file.
"""

"""A trained network as a file that other programs run: StableHLO, ONNX and LiteRT.

What is exported is `program`: from the bytes of an image to logits, normalisation included. Every format has a `write`,
and a `read` that runs the file as those programs would.
"""

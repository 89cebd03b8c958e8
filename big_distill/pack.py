"""Packs a run's student into files, reads each back, evaluates it, and prints its size, accuracy and latency.

  python -m big_distill.pack --workdir=runs/deep_compression_lenet300-0123456789ab
  python -m big_distill.pack --workdir=... --step=best --formats=container --split=validation
  python -m big_distill.pack --workdir=... --formats=container,tflite,onnx --quantize=int8

It writes the files into the run directory as student.SUFFIX, or student-best-int8.SUFFIX, and the table as pack.json.
The formats are:

  container    .bdz          entropy-coded weights: small where they are shared, mostly zero, or rounded
  safetensors  .safetensors  weights in float32
  tflite       .tflite       LiteRT (TensorFlow Lite), in floats, or in integers alone if inputs are rounded (extra tf)
  onnx         .onnx         ONNX for any batch size (extra onnx)
  stablehlo    .stablehlo    jax.export for any batch size, on CPU, GPU and TPU

The first two hold weights and the network's card; --config.teacher.path=FILE takes them. The others are executable and
map uint8 pixels to logits. FILE.json beside each says what it expects. big_distill.load(FILE) and
big_distill.evaluate --packed=FILE take any of the five.

--quantize rounds the student first, without training: all parameters to bfloat16, or kernels to int8 or int4, with a
scale a filter, and the inputs of layers to 8 bits, with ranges from 256 training images. A student that was trained so
is packed so without it. (LiteRT's kernels have 8 bits even where ours have 4. It always uses the ranges of the 256
images.)

In the table `bytes` is the size of the file, `ratio` that of config.student's weights in float32 to it, `bits/weight`
its bits by their number; `largest difference` is that between a logit of the file and the JAX network's, in standard
deviations of the logits, on one batch: more than 0.001 is an error, or where it rounds more than 0.25 on average.
Accuracy and agreement are of the file as it was read back, latency is for one image on this machine (median), FLOPs are
those that XLA counts for the network.
"""

from __future__ import annotations

from typing import Any

import jax
from absl import flags

from big_distill import cli
from big_distill.terminal import aligned, percent, start_devices


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    cli.define_run_flags(split="test")
    flags.DEFINE_list("formats", ["container", "safetensors"], "Names the formats to write, of those above.")
    flags.DEFINE_string("quantize", None, "Rounds the student first: bfloat16, int8 or int4.")


def main() -> None:
    """Reads the flags, packs and prints the table."""
    start_devices()
    args, workdir = flags.FLAGS, cli.run_directory()
    from big_distill.export.packing import pack

    rows = pack(workdir, args.formats, args.step, cli.test_split(workdir), cli.other_data(), args.quantize)
    if jax.process_index() == 0:
        print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Formats one file a line."""
    heads = ["format", "bytes", "ratio", "non-zero", "bits/weight", "largest difference"]
    lines = [[*heads, "accuracy", "agreement", "latency", "FLOPs"]]
    for row in rows:
        cells = [" ".join(filter(None, [row["format"], row["precision"]])), f"{row['bytes']:,}", f"{row['ratio']:.1f}x"]
        cells += [f"{row['nonzero']:,}", f"{row['bits_per_weight']:.3f}", f"{row['difference']:.2g}"]
        cells += [percent(row[key]) for key in ("accuracy", "agreement")]
        lines.append([*cells, f"{row['latency_ms']:.2f} ms", f"{row['flops']:,.0f}"])
    return aligned(lines)


if __name__ == "__main__":
    define_flags()
    cli.run(main)

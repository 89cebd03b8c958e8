"""Makes a TFDS set from the official archives that you have, without network or TensorFlow.

  python -m big_distill.prepare --dataset=mnist --archives=DIR
  python -m big_distill.prepare --dataset=cifar10 --archives=DIR --data_dir=DIR
  python -m big_distill.prepare --dataset=oxford_flowers102 --archives=DIR --overwrite

tfds.builder(NAME, data_dir=DIR).as_data_source(split=SPLIT) opens the set anywhere. Its directory, features, splits,
class names and order of examples are those of TFDS's own builder. Put these files in --archives:

  mnist              https://storage.googleapis.com/cvdf-datasets/mnist/
                       train-images-idx3-ubyte.gz  train-labels-idx1-ubyte.gz
                       t10k-images-idx3-ubyte.gz   t10k-labels-idx1-ubyte.gz
  fashion_mnist      http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/
                       the same four names
  cifar10            https://www.cs.toronto.edu/~kriz/
                       cifar-10-binary.tar.gz
  oxford_flowers102  https://www.robots.ox.ac.uk/~vgg/data/flowers/102/
                       102flowers.tgz  imagelabels.mat  setid.mat

A file that differs from upstream's (images made smaller, say) is used, with a warning. The set keeps the SHA-256 of
every file. A missing or damaged file ends the program with status 3, and nothing half-written stays behind.
"""

from __future__ import annotations

import pathlib
import time

import tensorflow_datasets as tfds
from absl import flags

from big_distill import cli
from big_distill.data import archives
from big_distill.errors import ConfigError

NEXT = {
    "mnist": "--config=configs/mnist_kd.py",
    "fashion_mnist": "--config=configs/mnist_teacher.py --config.source.name=fashion_mnist",
    "cifar10": "--config=configs/cifar10_kd.py",
    "oxford_flowers102": "--config=configs/flowers64_fm.py",
}


def define_flags() -> None:
    """Defines the flags; importing the module does not, so that one process can import several commands."""
    flags.DEFINE_string("dataset", None, f"Names the set to make: {', '.join(archives.DATASETS)}.")
    flags.DEFINE_string("archives", None, "Names the directory that holds the archives, under upstream's names.")
    flags.DEFINE_string(
        "data_dir", None, "Names the root of the TFDS sets. Default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."
    )
    flags.DEFINE_bool("overwrite", False, "Makes the set again; the old one stays until the new one is complete.")


def main() -> None:
    """Prepares one set, and says in one line where it is and how to use it."""
    args = flags.FLAGS
    if args.dataset is None or args.archives is None:
        raise ConfigError("--dataset=NAME and --archives=DIR are needed; --help says where to get the archives")
    data_dir = pathlib.Path(args.data_dir) if args.data_dir else None
    target = archives.directory(args.dataset, data_dir)
    root = target.parent.parent
    usage = f"use it with {NEXT[args.dataset]} --data_dir={root}"
    if archives.is_prepared(target) and not args.overwrite:
        print(f"{args.dataset} is already in {target} (--overwrite makes it again); {usage}")
        return
    start = time.perf_counter()
    archives.prepare(args.dataset, pathlib.Path(args.archives), data_dir, args.overwrite)
    seconds = time.perf_counter() - start
    splits = tfds.builder(args.dataset, data_dir=root).info.splits
    counts = ", ".join(f"{name} {split.num_examples}" for name, split in splits.items())
    print(f"{args.dataset} is in {target}: {counts} examples, in {seconds:.1f} s; {usage}")


if __name__ == "__main__":
    define_flags()
    cli.run(main)

"""MNIST: Deep Compression of Caffe's LeNet-5 (Han et al. 2016): pruned while it learns, then its weights shared.

  python -m big_distill.main --config=configs/deep_compression_lenet5.py --data_dir=...
  python -m big_distill.pack --workdir=RUN

As deep_compression_lenet300, with 431,080 parameters. Han et al.: error 0.80 -> 0.74 %, 1,720 -> 44 KB, 39x.
Run here as `:smoke` alone.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("deep_compression_lenet300.py"))
    for stage in (config, config.init_config):
        stage.student.name = "lenet5"
        stage.student.features = ()
    config.init_config.total_epochs = 30
    config.total_epochs = 10
    config.init_config.compress.sparsity = 0.97
    return smoke(config) if arg.smoke else config

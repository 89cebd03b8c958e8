"""Applies Deep Compression (Han et al. 2016) to LeNet-300-100 on MNIST: prunes while it learns, then shares weights.

  python -m big_distill.main --config=configs/deep_compression_lenet300.py --data_dir=...
  python -m big_distill.main --config=configs/deep_compression_lenet300.py:teacher=six_layer --data_dir=...
  python -m big_distill.pack --workdir=RUN

The first stage (`init_config`, in the run's init/) learns from labels and prunes meanwhile. The second stage makes each
weight of a layer one of 2^bits values, by k-means, and trains those values. `teacher=six_layer` prunes further, keeps
biases in bfloat16, and distils both stages by Hinton's loss from a six-layer CNN that is trained first. Han et al. have
error 1.64 -> 1.58 %, 1,070 -> 27 KB, 40x.
It was run here (two CPU cores, 5 minutes): seeds 0, 1, 2 reach 98.50, 98.49, 98.52 % of test in 14,784, 14,730, 14,760
bytes. `teacher=six_layer` from kept teachers, with 20 + 5 epochs, reaches 98.31 % in 8,712 bytes, and with 97 % zeros
instead of 97.5 % it reaches 98.61 % in 9,956 bytes (107x).
"""

import pathlib

from big_distill.config_files import copied, load_config, parse_arg, smoke, teacher_of, with_data_of


def get_config(arg=""):
    arg = parse_arg(arg, teacher="none|six_layer", smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("mnist_teacher.py"))
    config.view.crop = "inception"
    config.view.area_min = 0.85
    config.student.name = "mlp"
    config.student.features = (300, 100)
    config.batch_size = 128
    config.optimizer.lr = 2e-3
    config.total_epochs = 60

    teacher = teacher_of(config)
    teacher.student.name = "six_layer_cnn"
    teacher.student.features = ()
    teacher.total_epochs = 16

    first = with_data_of(copied(config), config)
    first.seed = config.get_ref("seed")
    first.compress.sparsity = 0.95
    first.compress.prune_begin, first.compress.prune_end = 0.1, 0.7
    config.init_config = first

    config.compress.bits = 4
    config.total_epochs = 15
    config.optimizer.lr = 3e-4
    if arg.teacher == "six_layer":
        config.teacher.config = teacher
        first.teacher.path = "teacher"
        for stage in (config, first):
            stage.objective.name = "hinton"
            stage.objective.temperature = 4.0
            stage.objective.scale_soft_by_t2 = True
        first.compress.sparsity = 0.975
        config.compress.rest = "bfloat16"
    return smoke(config) if arg.smoke else config

"""Cuts a six-layer CNN on MNIST to a third of its FLOPs: factors it by SVD and Tucker's decomposition, and distils it.

  python -m big_distill.main --config=configs/lowrank_mnist.py --data_dir=...
  python -m big_distill.pack --workdir=RUN

The dense network is trained first, on labels (the run's teacher/). The student starts from it with factored kernels,
and matches its function. The ranks keep as much of each kernel as the budget allows (`compress.rank_flops`).
It was run here from a kept network (`--config.teacher.path=RUN --config.total_epochs=2`): 99.58 -> 99.59 % of test with
12.1 of 35.7 million FLOPs.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke, teacher_of


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("mnist_teacher.py"))
    config.student.name = "six_layer_cnn"
    config.student.features = ()
    config.batch_size = 128
    config.total_epochs = 8
    config.teacher.config = teacher_of(config)

    config.init_from = "teacher"
    config.compress.rank_flops = 0.33
    config.objective.name = "function_matching"
    config.view.regime = "function_matching"
    config.view.crop = "inception"
    config.view.area_min = 0.85
    return smoke(config) if arg.smoke else config

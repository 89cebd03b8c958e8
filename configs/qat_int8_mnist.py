"""Trains the distilled CNN 16-32 on MNIST in 8-bit integers, kernels and activations, to match its float version.

  python -m big_distill.main --config=configs/qat_int8_mnist.py --data_dir=...
  python -m big_distill.pack --workdir=RUN --formats=container,tflite,onnx

The teacher is the student of mnist_kd, which is first distilled from its own teacher. The student starts from it. Its
kernels are rounded to integers with one scale a filter, and its layers' inputs to 8 bits with running ranges (Jacob et
al. 2018, arXiv 1712.05877). `big_distill.pack --workdir=TEACHER --quantize=int8` rounds without training.
It was run here from a kept teacher (`--config.teacher.path=RUN`): 98.35 -> 98.31 % of test, as LiteRT 98.26 %.
"""

import pathlib

from big_distill.config_files import copied, load_config, parse_arg, smoke, with_data_of


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("mnist_kd.py"))
    config.teacher.config = with_data_of(copied(config), config)
    config.init_from = "teacher"
    config.student.activation_bits = 8
    config.compress.integer_bits = 8
    config.objective.name = "function_matching"
    config.objective.temperature = 1.0
    config.view.regime = "function_matching"
    config.optimizer.lr = 1e-4
    config.total_epochs = 3
    return smoke(config) if arg.smoke else config

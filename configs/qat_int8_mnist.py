"""MNIST: the distilled CNN 16-32 in 8-bit integers, kernels and activations, trained to match its float self.

  python -m big_distill.main --config=configs/qat_int8_mnist.py --data_dir=...
  python -m big_distill.pack --workdir=RUN --formats=container,tflite,onnx

The teacher is the student of mnist_kd, distilled first from its own teacher; the student starts from it, its kernels
rounded to integers with a scale a filter, its layers' inputs to 8 bits with running ranges (Jacob et al. 2018, arXiv
1712.05877). Rounding without training: `big_distill.pack --workdir=TEACHER --quantize=int8`.
Run here from a kept teacher (`--config.teacher.path=RUN`): 98.35 -> 98.31 % of test, as LiteRT 98.26 %.
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

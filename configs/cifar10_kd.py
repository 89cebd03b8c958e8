"""CIFAR-10: Hinton's distillation of a CNN 256-512 into a CNN 16-32, teacher trained first.

  python -m big_distill.main --config=configs/cifar10_kd.py --data_dir=...

"Compressing Neural Nets", Table I: teacher 69.72 %, student 58.55 % of test after 10 epochs. T and alpha: see mnist_kd.
Run here as `:smoke` alone.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke, teacher_of


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("cifar10_teacher.py"))
    config.teacher.config = teacher_of(config)
    config.student.features = (16, 32)
    config.objective.name = "hinton"
    config.objective.temperature = 10.0
    config.objective.alpha = 0.9
    return smoke(config) if arg.smoke else config

"""CIFAR-10: the student paper's teacher, a CNN 256-512, on labels alone.

  python -m big_distill.main --config=configs/cifar10_teacher.py --data_dir=...

"Compressing Neural Nets", Table I: 69.72 % of test after 10 epochs. Everything else as in mnist_teacher.
Run here as `:smoke` alone.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("mnist_teacher.py"))
    config.source.name = "cifar10"
    config.source.num_train_examples = 50_000
    config.source.resident = True
    config.view.image_size = 32
    config.view.channels = 3
    config.total_epochs = 10
    return smoke(config) if arg.smoke else config

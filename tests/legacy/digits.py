"""The digits in runs of a second: `:run=distilled`, `:run=compressed`, `:run=quantized`.

The archives beside this file were made with it and are resumed with it. Change nothing here.
"""

from big_distill.config_files import copied, parse_arg, template, with_data_of


def get_config(arg=""):
    arg = parse_arg(arg, run="distilled|compressed|quantized")
    config = template()
    config.num_classes = 10
    config.source.name = "digits"
    config.source.num_train_examples = 1200
    config.source.validation = "validation"
    config.view.image_size = 8
    config.view.channels = 1
    config.view.area_min = 0.7
    config.view.flip = False
    config.batch_size = 40
    config.total_steps = 12
    config.log_every_steps = 2
    config.eval_every_steps = 6
    config.checkpoint_every_steps = 5
    config.keep_latest = 1
    config.student.name = "cnn"
    config.student.features = (4, 8)
    config.objective.name = "cross_entropy"
    config.optimizer.lr = 2e-2
    config.optimizer.warmup_steps = 2
    config.optimizer.weight_decay = 1e-4
    {"distilled": distill, "compressed": compress, "quantized": quantize}[arg.run](config)
    return config


def distill(config, name="cnn", **model):
    """From a wider CNN, or another teacher, by function matching."""
    teacher = with_data_of(copied(config), config)
    teacher.student.name = name
    teacher.student.update(model or {"features": (8, 16)})
    teacher.total_steps = 60
    teacher.eval_every_steps = teacher.checkpoint_every_steps = 30
    config.teacher.config = teacher
    config.view.regime = config.objective.name = "function_matching"
    config.objective.temperature = 2.0


def compress(config):
    """An MLP that is pruned first; then its weights share four values a layer."""
    config.student.name = "mlp"
    config.student.features = (8,)
    first = with_data_of(copied(config), config)
    first.compress.sparsity = 0.5
    first.compress.prune_every_steps = 2
    config.init_config = first
    config.compress.bits = 2
    config.compress.rest = "bfloat16"


def quantize(config):
    """From a BiT that computes in integers: first in floats, then with a quarter of the channels less, in integers."""
    config.view.image_size = 16
    distill(config, "bit", features=(), blocks=(1,), width=0.1875)
    config.teacher.dtype = "int8"
    first = with_data_of(copied(config), config)
    first.teacher.config, first.teacher.path = None, "teacher"
    config.init_config = first
    config.compress.structure = "channels"
    config.compress.sparsity = 0.25
    config.compress.integer_bits = 8
    config.student.activation_bits = 8

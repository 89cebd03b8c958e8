"""Distils a CNN in a minute on scikit-learn's handwritten digits (8x8; 1,200 train, 200 validation, 397 test).

  bash launch/local.sh
  python -m big_distill.main --config=configs/digits_fm.py

A CNN 64-128 is trained on labels. Then a CNN 16-32 is distilled from it by function matching alone: same crop, same
mixup, no labels. It was run here (two CPU cores, 20 s): teacher 99.24 %, student 98.99 % of test. No paper has figures
for this pair.
"""

from big_distill.config_files import parse_arg, smoke, teacher_of, template


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = template()
    config.num_classes = 10
    config.source.name = "digits"
    config.source.num_train_examples = 1200
    config.source.validation = "validation"
    config.view.image_size = 8
    config.view.channels = 1
    config.view.area_min = 0.7
    config.view.flip = False
    config.batch_size = 128
    config.optimizer.lr = 3e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 50

    teacher = teacher_of(config)
    teacher.student.name = "cnn"
    teacher.student.features = (64, 128)
    teacher.objective.name = "cross_entropy"
    teacher.total_epochs = 100

    config.student.name = "cnn"
    config.student.features = (16, 32)
    config.teacher.config = teacher
    config.view.regime = "function_matching"
    config.objective.name = "function_matching"
    config.objective.temperature = 2.0
    config.total_epochs = 600
    return smoke(config) if arg.smoke else config

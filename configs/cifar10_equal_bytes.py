"""CIFAR-10: a network in a tenth of its bytes, by pruning, by distillation into a narrower one, or by both.

  python -m big_distill.main --config=configs/cifar10_equal_bytes.py --data_dir=...
  python -m big_distill.main --config=configs/cifar10_equal_bytes.py:method=distillation \
    --config.teacher.path=RUN/teacher --data_dir=...
  python -m big_distill.main --config=configs/cifar10_equal_bytes.py:method=pruning,network=large \
    --config.init_from=RUN/teacher --data_dir=...
  python -m big_distill.pack --workdir=RUN

"Compressing Neural Nets" concludes that distillation beats pruning on large networks; it gives no such table. The dense
network learns from labels first: a CNN 16-32 (`network=small`) or a BiT [1,1,1,1]x0.25 (`large`), 20 epochs. Then, for
20 more: `both` (the default) prunes it while it matches the function that it had, `pruning` prunes it on labels,
`distillation` matches it with a narrower one from scratch, `labels` is that narrower one on labels alone. Sparsity and
widths are such that the containers of all four are equally large, about a tenth of the dense network's weights. To be
run here.
"""

from big_distill.config_files import parse_arg, smoke, teacher_of, template


def get_config(arg=""):
    arg = parse_arg(arg, method="both|pruning|distillation|labels", network="small|large", smoke=False)
    config = template()
    config.num_classes = 10
    config.source.name = "cifar10"
    config.source.train = "train[:45000]"
    config.source.num_train_examples = 45_000
    config.source.validation = "train[45000:]"
    config.source.resident = True
    config.view.image_size = 32
    config.view.crop = "central"
    if arg.network == "small":
        config.student.name = "cnn"
        config.student.features = (16, 32)
    else:
        config.student.name = "bit"
        config.student.blocks = (1, 1, 1, 1)
        config.student.width = 0.25
    config.objective.name = "cross_entropy"
    config.batch_size = 100
    config.log_every_steps = 150
    config.optimizer.lr = 2e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 200
    config.total_epochs = 20

    dense = teacher_of(config)
    if arg.method == "pruning":
        config.init_config = dense
    elif arg.method != "labels":
        config.teacher.config = dense
        config.objective.name = "function_matching"
        config.objective.temperature = 2.0
    if arg.method == "both":
        config.init_from = "teacher"
    if arg.method in ("pruning", "both"):
        config.compress.sparsity = 0.915 if arg.network == "small" else 0.9225
    elif arg.network == "small":
        config.student.features = (3, 4)
    else:
        config.student.width = 0.078125
    return smoke(config) if arg.smoke else config

"""CIFAR-10: a BiT [2,2,2,2]x0.5 that loses channels, or weights, and matches the function that it had with them.

  python -m big_distill.main --config=configs/prune_distill_cifar10.py --data_dir=...
  python -m big_distill.pack --workdir=RUN

  python -m big_distill.main --config=configs/prune_distill_cifar10.py:structure=weights --data_dir=...

After Aghli & Ribeiro 2021, "Combining weight pruning and knowledge distillation for CNN compression": the dense network
is trained first, on labels (the run's teacher/). The student starts from it, is pruned where no skip connection ties,
in the first two convolutions of every unit, and distilled. `structure=channels` (the default) cuts half of those
channels out, at once; `weights` prunes to a tenth as it goes. For rates by layer, as the paper chooses them:

  python -m big_distill.sensitivity --workdir=RUN/teacher --structure=channels --split='train[:5000]'

Its last line holds flags for a run with `--config.teacher.path=RUN/teacher`. Run here so (teacher 4 epochs, student 2,
of 45,000 images; rates chosen on 2,000 others): 57.44 -> 56.49 % of test, 3,503,018 -> 1,162,096 parameters,
45.7 -> 20.2 million FLOPs, 12,983,961 -> 4,306,610 bytes.
"""

from big_distill.config_files import parse_arg, smoke, teacher_of, template


def get_config(arg=""):
    arg = parse_arg(arg, structure="channels|weights", smoke=False)
    config = template()
    config.num_classes = 10
    config.source.name = "cifar10"
    config.source.num_train_examples = 50_000
    config.view.image_size = 32
    config.view.area_min = 0.3
    config.student.name = "bit"
    config.student.blocks = (2, 2, 2, 2)
    config.student.width = 0.5
    config.batch_size = 128
    config.optimizer.lr = 2e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 500
    config.total_epochs = 30

    teacher = teacher_of(config)
    teacher.objective.name = "cross_entropy"
    config.teacher.config = teacher
    config.init_from = "teacher"
    config.view.regime = "function_matching"
    config.objective.name = "function_matching"
    config.objective.temperature = 2.0
    config.compress.layers = r"block.*/unit.*/conv[12]/kernel"
    config.compress.structure = arg.structure
    config.compress.sparsity = 0.5 if arg.structure == "channels" else 0.9
    return smoke(config) if arg.smoke else config

"""CIFAR-10: a BiT [2,2,2,2]x0.5 that is pruned to a tenth while it matches its dense teacher's function.

  python -m big_distill.main --config=configs/prune_distill_cifar10.py --data_dir=...
  python -m big_distill.pack --workdir=RUN

The teacher has the student's architecture and is trained first on labels. After Aghli & Ribeiro 2021, "Combining weight
pruning and knowledge distillation", only convolutions that no skip connection ties are pruned, those inside a block:
here weight by weight, not yet whole filters. Run here as `:smoke` alone.
"""

from big_distill.config_files import parse_arg, smoke, teacher_of, template


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
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
    config.view.regime = "function_matching"
    config.objective.name = "function_matching"
    config.objective.temperature = 2.0
    config.compress.layers = r"block.*/unit.*/conv[12]/kernel"
    config.compress.sparsity = 0.9
    return smoke(config) if arg.smoke else config

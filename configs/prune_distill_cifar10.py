"""Prunes channels or weights of a BiT on CIFAR-10 while it matches the function that it had before.

  python -m big_distill.main --config=configs/prune_distill_cifar10.py --data_dir=...
  python -m big_distill.pack --workdir=RUN

  python -m big_distill.main --config=configs/prune_distill_cifar10.py:structure=weights,network=small --data_dir=...

It follows Aghli & Ribeiro 2021, "Combining weight pruning and knowledge distillation for CNN compression". The dense
network is trained first, on labels (the run's teacher/). The student starts from it, is pruned, and is distilled.
`structure=channels` (the default) removes half of the channels at once, in the first two convolutions of every unit,
where no skip connection ties the channels. `structure=weights` zeroes three in four of all kernels' weights, which
nothing ties, during the run; in 8-bit integers (`big_distill.pack --quantize=int8`) it takes less than a tenth of the
bytes. The network is a BiT [2,2,2,2]x0.5, or with `network=small` a [1,1,1,1]x0.25, for two CPU cores.
This command chooses rates by layer, as the paper does:

  python -m big_distill.sensitivity --workdir=RUN/teacher --structure=channels --split='train[45000:]'

Its last line has the flags for a run with `--config.teacher.path=RUN/teacher`. It was run here so (teacher 4 epochs,
student 2, both with `view.area_min=0.3`; rates chosen on 2,000 of the other images): 57.44 -> 56.49 % of test,
3,503,018 -> 1,162,096 parameters, 45.7 -> 20.2 million FLOPs, 12,983,961 -> 4,306,610 bytes. `weights` was run here
with `network=small`, seed 0: 67.79 -> 67.54 % of test, agreement 88.71 %; in 8-bit integers 67.46 %, 2,043,189 ->
191,849 bytes. A first recipe, which zeroed 92 % of the weights in 20 epochs, was tested before: 64.18 %. Three quarters
were chosen for their bytes. Mixup was chosen on the validation images: after 5 epochs it was 0.66 points better than
unmixed images.
"""

from big_distill.config_files import parse_arg, smoke, teacher_of, template

NETWORKS = {"large": ((2, 2, 2, 2), 0.5), "small": ((1, 1, 1, 1), 0.25)}  # blocks, width


def get_config(arg=""):
    arg = parse_arg(arg, structure="channels|weights", network="large|small", smoke=False)
    config = template()
    config.num_classes = 10
    config.source.name = "cifar10"
    config.source.train = "train[:45000]"
    config.source.num_train_examples = 45_000
    config.source.validation = "train[45000:]"
    config.source.resident = True
    config.view.image_size = 32
    config.view.area_min = 0.5
    config.student.name = "bit"
    config.student.blocks, config.student.width = NETWORKS[arg.network]
    config.batch_size = 128
    config.optimizer.lr = 2e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 500
    config.total_epochs = 20

    teacher = teacher_of(config)
    teacher.objective.name = "cross_entropy"
    config.teacher.config = teacher
    config.init_from = "teacher"
    config.view.regime = "function_matching"
    config.objective.name = "function_matching"
    config.objective.temperature = 2.0
    config.compress.structure = arg.structure
    if arg.structure == "channels":
        config.compress.layers, config.compress.sparsity = r"block.*/unit.*/conv[12]/kernel", 0.5
    else:
        config.compress.layers, config.compress.sparsity = ".*kernel", 0.75
        config.total_epochs = 40
    return smoke(config) if arg.smoke else config

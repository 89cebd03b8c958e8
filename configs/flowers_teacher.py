"""Fine-tunes a BiT on Flowers-102 at 128 px by the BiT-HyperRule; `:variant=r152x2`, `r101x3` or `r50x1`.

  python -m big_distill.main --config=configs/flowers_teacher.py:variant=r50x1 --config.init_from=bit-m-r50x1 \
    --config.init_fresh='head/.*'

The rule is that of Kolesnikov et al. 2020, section 3.3: SGD 0.003, batch 512, 500 steps, no mixup (fewer than 20k
images). Its own resolution for images of this size is 512 -> 480 px; here the resolution is that of the distillation,
with inception crops. From BiT-M weights the papers reach 97.82 % (R152x2, Beyer et al. 2022, Table 4), 98.18 % (R101x3,
"Compressing Neural Nets", Table II) and 97.50 % (R50x1) of test.
It was not run here, because it needs an accelerator.
"""

from big_distill.config_files import parse_arg, smoke, template


def get_config(arg=""):
    arg = parse_arg(arg, variant="r152x2|r101x3|r50x1", smoke=False)
    config = template()
    config.num_classes = 102
    config.source.name = "oxford_flowers102"
    config.source.num_train_examples = 1020
    config.source.validation = "validation"
    config.view.image_size = 128
    config.view.resize = 160
    config.student.name = "bit"
    config.student.root_pool = "zero"
    config.student.depth, config.student.width = {"r152x2": (152, 2.0), "r101x3": (101, 3.0), "r50x1": (50, 1.0)}[
        arg.variant
    ]
    config.objective.name = "cross_entropy"
    config.batch_size = 512
    config.optimizer.name = "sgd"
    config.optimizer.lr = 0.003
    config.optimizer.clip_norm = 0.0
    config.optimizer.schedule = "bit_hyperrule"
    return smoke(config) if arg.smoke else config

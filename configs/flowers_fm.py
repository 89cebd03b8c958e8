"""Distils BiT R152x2 into R50x1 on Flowers-102 at 128 px; `:variant=fast`, `medium`, `long` or `student_paper`.

  python -m big_distill.main --config=configs/flowers_fm.py:variant=medium --data_dir=...

The student learns by function matching. The teacher is the paper's, `R152x2_T_flowers128.npz`: it is fetched from
gs://bit_models/distill, unless `--config.teacher.path` names a file. Expect this of the student (Beyer et al. 2022,
Table 4, test; teacher 97.82 %):

  fast            10k epochs   92.83 %      medium   100k epochs   95.54 %      long   1M epochs   96.93 %
  student_paper    1k epochs   81.02 % from another teacher, R101x3 at 98.18 % ("Compressing Neural Nets", Table II);
                               from R152x2 Table 4 has 77.51 %. flowers_teacher.py:variant=r101x3
                               trains the R101x3.

It was not run here, because it needs an accelerator. A thousand epochs of 1,020 images are only 1,992 steps, of which
1,500 are warm-up.
"""

from big_distill.config_files import parse_arg, smoke, template

# variant: (epochs, temperature, lr, weight decay)
VARIANTS = {
    "fast": (10_000, 10.0, 3e-3, 3e-4),
    "medium": (100_000, 1.0, 1e-3, 1e-4),
    "long": (1_000_000, 1.0, 3e-4, 1e-5),
    "student_paper": (1_000, 10.0, 3e-3, 1e-3),
}


def get_config(arg=""):
    arg = parse_arg(arg, variant="fast|medium|long|student_paper", smoke=False)
    config = template()
    config.num_classes = 102
    config.source.name = "oxford_flowers102"
    config.source.num_train_examples = 1020
    config.source.validation = "validation"
    config.view.image_size = 128
    config.view.resize = 160
    config.view.regime = "function_matching"

    config.student.name = "bit"
    config.student.depth = 50
    config.teacher.path = "flowers_r101x3.npz" if arg.variant == "student_paper" else "bit-m-r152x2-flowers128"

    config.objective.name = "function_matching"
    config.batch_size = 512
    config.optimizer.warmup_steps = 1500
    config.total_epochs, config.objective.temperature = VARIANTS[arg.variant][:2]
    config.optimizer.lr, config.optimizer.weight_decay = VARIANTS[arg.variant][2:]
    config.log_every_steps = 100
    return smoke(config) if arg.smoke else config

"""Distils BiT R152x2 into R50x1 by function matching on SUN-397 (128 px); `:variant=fast`, `medium` or `long`.

  python -m big_distill.main --config=configs/sun_fm.py:variant=medium --data_dir=...

The teacher is the paper's, `R152x2_T_sun128.npz`: it is fetched from gs://bit_models/distill, unless
`--config.teacher.path` names a file. All else is as in flowers_fm. Expect this of the student (Beyer et al. 2022,
Table 4, test; teacher 74.22 %):

  fast   100 epochs   68.28 %      medium   1k epochs   73.46 %      long   3k epochs   74.26 %

It was not run here, because it needs an accelerator and the data set prepared by TFDS.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke

# variant: (epochs, temperature, lr, weight decay)
VARIANTS = {
    "fast": (100, 10.0, 1e-2, 1e-3),
    "medium": (1_000, 10.0, 3e-3, 1e-4),
    "long": (3_000, 10.0, 1e-2, 3e-5),
}


def get_config(arg=""):
    arg = parse_arg(arg, variant="fast|medium|long", smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("flowers_fm.py"))
    config.num_classes = 397
    config.source.name = "sun397/tfds"
    config.source.num_train_examples = 76_128
    config.source.validation = "validation"
    config.teacher.path = "bit-m-r152x2-sun128"
    config.total_epochs, config.objective.temperature = VARIANTS[arg.variant][:2]
    config.optimizer.lr, config.optimizer.weight_decay = VARIANTS[arg.variant][2:]
    return smoke(config) if arg.smoke else config

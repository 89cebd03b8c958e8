"""Distils BiT R152x2 into R50x1 by function matching on Oxford-IIIT Pets (128 px); `:variant=fast`, `medium` or `long`.

  python -m big_distill.main --config=configs/pets_fm.py:variant=medium --data_dir=...

The teacher is the paper's, `R152x2_T_pet128.npz`: it is fetched from gs://bit_models/distill, unless
`--config.teacher.path` names a file. All else is as in flowers_fm. Expect this of the student (Beyer et al. 2022,
Table 4, test; teacher 91.03 %):

  fast   1k epochs   88.01 %      medium   3k epochs   90.08 %      long   30k epochs   91.06 %

It was not run here, because it needs an accelerator and the data set prepared by TFDS.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke

# variant: (epochs, temperature, lr, weight decay)
VARIANTS = {
    "fast": (1_000, 5.0, 1e-2, 1e-3),
    "medium": (3_000, 10.0, 3e-3, 3e-4),
    "long": (30_000, 2.0, 3e-3, 1e-5),
}


def get_config(arg=""):
    arg = parse_arg(arg, variant="fast|medium|long", smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("flowers_fm.py"))
    config.num_classes = 37
    config.source.name = "oxford_iiit_pet"
    config.source.num_train_examples = 3312
    config.source.train = "train[:90%]"
    config.source.validation = "train[90%:]"
    config.teacher.path = "bit-m-r152x2-pet128"
    config.total_epochs, config.objective.temperature = VARIANTS[arg.variant][:2]
    config.optimizer.lr, config.optimizer.weight_decay = VARIANTS[arg.variant][2:]
    return smoke(config) if arg.smoke else config

"""Distils BiT R152x2 into R50x1 on ImageNet-1k at 224 px, for 1,200 epochs unless `total_epochs` says otherwise.

  python -m big_distill.main --config=configs/imagenet_fm.py --data_dir=... --config.total_epochs=300

The student learns by function matching. The teacher is the paper's, `R152x2_T_224.npz`: it is fetched from
gs://bit_models/distill, unless `--config.teacher.path` names a file. Expect this of the student (Beyer et al. 2022,
top-1 on the official validation set, which is the test split here; T = 1, lr 0.03, weight decay 3e-4):

  epochs   30      90      300     600     1200    4800    9600
  top-1    73.89   78.00   80.30   81.17   81.54   82.18   82.31

It was not run here, because it needs an accelerator and the data set prepared by TFDS.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = load_config(pathlib.Path(__file__).with_name("flowers_fm.py"))
    config.num_classes = 1000
    config.source.name = "imagenet2012"
    config.source.train = "train[:98%]"
    config.source.validation = "train[99%:]"
    config.source.test = "validation"
    config.source.num_train_examples = 1_255_544
    config.view.image_size = 224
    config.view.resize = 256
    config.teacher.path = "bit-m-r152x2-imagenet224"
    config.objective.temperature = 1.0
    config.batch_size = 4096
    config.optimizer.lr = 0.03
    config.optimizer.weight_decay = 3e-4
    config.optimizer.warmup_steps = 5000
    config.total_epochs = 1200
    return smoke(config) if arg.smoke else config

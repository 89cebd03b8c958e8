"""Compresses a CNN on CIFAR-10 to a tenth of its bytes: prunes it, distils it into a narrower CNN, or does both.

  python -m big_distill.main --config=configs/cifar10_equal_bytes.py --data_dir=...
  python -m big_distill.main --config=configs/cifar10_equal_bytes.py:method=prune \
    --config.init_from=RUN/teacher --data_dir=...
  python -m big_distill.main --config=configs/cifar10_equal_bytes.py:method=distill \
    --config.teacher.path=RUN/teacher --data_dir=...
  python -m big_distill.main --config=configs/cifar10_equal_bytes.py:method=labels,network=large --data_dir=...
  python -m big_distill.pack --workdir=RUN

"Compressing Neural Nets" concludes that distillation does better than pruning on large networks, but has no such table.
The dense network is a CNN 16-32 (`network=small`) or 64-128 (`large`). It learns from labels for 20 epochs.
`prune_distill` then prunes it for 20 more while it matches its dense function; `prune` does so while it learns from
labels. `distill` trains a CNN 3-4 (`large`: 12-20) from scratch for 40 epochs to match that function; `labels` trains
that CNN on labels alone, as long. All see the whole images, half of them flipped, and the teacher sees the same view
(`consistent`). Sparsity and widths are such that `pack` makes equally large containers of all four.
It was run here (two CPU cores, seed 0). `small` went from 64.88 % of test to 62.07 (`prune_distill`), 62.43 (`prune`),
52.41 (`distill`) and 52.88 % (`labels`), in 10,774 to 10,832 bytes. `large` went from 68.80 % to 68.47, 67.84, 64.35
and 64.40 %, in 57,506 to 57,658 bytes.
"""

from big_distill.config_files import parse_arg, smoke, teacher_of, template


def get_config(arg=""):
    arg = parse_arg(arg, method="prune_distill|prune|distill|labels", network="small|large", smoke=False)
    config = template()
    config.num_classes = 10
    config.source.name = "cifar10"
    config.source.train = "train[:45000]"
    config.source.num_train_examples = 45_000
    config.source.validation = "train[45000:]"
    config.source.resident = True
    config.view.image_size = 32
    config.view.crop = "central"
    config.student.name = "cnn"
    config.student.features = (16, 32) if arg.network == "small" else (64, 128)
    config.objective.name = "cross_entropy"
    config.batch_size = 128
    config.log_every_steps = 88
    config.optimizer.lr = 2e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 200
    config.total_epochs = 20

    dense = teacher_of(config)
    if arg.method == "prune":
        config.init_config = dense
    elif arg.method != "labels":
        config.teacher.config = dense
        config.objective.name = "function_matching"
        config.objective.temperature = 2.0
    if arg.method == "prune_distill":
        config.init_from = "teacher"
    if arg.method in ("prune_distill", "prune"):
        config.compress.sparsity = 0.915 if arg.network == "small" else 0.9228
    else:
        config.student.features = (3, 4) if arg.network == "small" else (12, 20)
        config.total_epochs = 40
    return smoke(config) if arg.smoke else config

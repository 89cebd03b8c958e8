"""Learns the digits in three stages of 28 steps: a teacher, a pruned student, and that one with shared weights.

`:stages=teacher` trains the teacher alone.
"""

from big_distill.config.template import copied, load_config, parse_arg, with_data_of


def get_config(arg=""):
    arg = parse_arg(arg, stages="all|teacher")
    config = load_config("configs/digits_fm.py")
    config.student.features = (4, 8)
    config.teacher.config.student.features = (8, 16)
    first = with_data_of(copied(config), config)
    first.teacher.config, first.teacher.path = None, "teacher"
    first.compress.sparsity, first.compress.prune_every_steps = 0.5, 3
    config.init_config = first
    config.compress.bits = 3
    for stage in (config, first, config.teacher.config):
        stage.batch_size = 40
        stage.optimizer.warmup_steps = 2
        stage.total_steps = 28
        stage.log_every_steps = 1
        stage.eval_every_steps, stage.checkpoint_every_steps = 7, 5
    return config if arg.stages == "all" else config.teacher.config

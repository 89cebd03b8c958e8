"""Distils a CNN 256-512 into a CNN 16-32 on CIFAR-10; `:variant=student_paper`, `tuned` or `patient`.

  python -m big_distill.main --config=configs/cifar10_kd.py --data_dir=...
  python -m big_distill.main --config=configs/cifar10_kd.py:variant=tuned --data_dir=...
  python -m big_distill.main --config=configs/cifar10_kd.py:variant=patient \
    --config.teacher.path=RUN/teacher --data_dir=...
  python -m big_distill.main --config=configs/cifar10_kd.py:variant=patient,teacher=none --data_dir=...

`student_paper`, the default, is Hinton's distillation as in "Compressing Neural Nets", Table I: expect teacher 69.72 %,
student 58.55 % of test after 10 epochs. mnist_kd explains T and alpha. It was run here as `:smoke` alone.

`tuned` has the same networks and epochs. Its data, views and teacher are those of cifar10_teacher's `tuned`. The
student also has T = 4, the soft term times T^2, and a learning rate of 4e-3; none of these was compared with others.
`patient` is function matching from that teacher for 100 epochs instead. `teacher=none` trains the student on labels
alone, for as long. They were run here (seed 0, `--config.teacher.dtype=bfloat16`). `tuned`: teacher 69.87 %, student
64.24 % of test, agreement 78.66 %; on labels alone 63.52 %. `patient` from that teacher: 65.82 %, agreement 81.34 %; on
labels alone 64.66 %.
"""

import pathlib

from big_distill.config_files import load_config, parse_arg, smoke, teacher_of, template


def get_config(arg=""):
    arg = parse_arg(arg, variant="student_paper|tuned|patient", teacher="cnn|none", smoke=False)
    tuned = arg.variant != "student_paper"
    variant = "variant=tuned" if tuned else ""
    config = load_config(pathlib.Path(__file__).with_name("cifar10_teacher.py"), variant)
    teacher = teacher_of(config)
    config.student.features = (16, 32)
    config.optimizer.lr = 4e-3 if tuned else 1e-3
    if arg.variant == "patient":
        config.total_epochs = 100
    if arg.teacher == "cnn":
        config.teacher.config = teacher
        config.objective = load_config(pathlib.Path(__file__).with_name("mnist_kd.py"), variant).objective
    if arg.teacher == "cnn" and arg.variant == "patient":
        config.view.regime = "function_matching"
        config.objective = template().objective
        config.objective.temperature = 2.0
    return smoke(config) if arg.smoke else config

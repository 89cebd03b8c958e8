"""MNIST: the student paper's teacher, a CNN 256-512, on labels alone.

  python -m big_distill.main --config=configs/mnist_teacher.py --data_dir=...

"Compressing Neural Nets", Table I: 97.78 % of test after 25 epochs. The paper gives neither optimiser nor batch size:
those of the Keras example its figures come from are used (Adam at 1e-3, batch 64), with this schema's clipping at 1,
bfloat16 first moment and cosine to zero. Run here as the teacher of mnist_kd.
"""

from big_distill.config_files import parse_arg, smoke, template


def get_config(arg=""):
    arg = parse_arg(arg, smoke=False)
    config = template()
    config.num_classes = 10
    config.source.name = "mnist"
    config.source.num_train_examples = 60_000
    config.source.resident = True
    config.view.image_size = 28
    config.view.channels = 1
    config.view.crop = "central"
    config.view.flip = False
    config.student.name = "cnn"
    config.student.features = (256, 512)
    config.objective.name = "cross_entropy"
    config.batch_size = 64
    config.total_epochs = 25
    config.optimizer.lr = 1e-3
    return smoke(config) if arg.smoke else config

"""The schema of a run: frozen dataclasses, every field known and marked.

A config file assigns to `template.template()`, a complete and locked `ConfigDict`, so that a typo fails at once;
`resolve.resolve` checks the whole and returns the frozen `Config` that everything else reads. A field is one of

* **maths**: it changes what is computed. A resumed run refuses another value; the fingerprint hashes these fields
  alone.
* **numerics**: it changes rounding only. A resumed run says that it is no longer bit-exact and goes on.
* **cosmetic**: it changes what is printed, kept or how fast data arrives.

A field also says what it may be (`_marked`): `--help` prints that, and `checks.check_fields` reads it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

PROFILED_STEPS = 5
OWN_TEACHER = "teacher"
"""Names the run's own teacher, as `init_from` and as the `teacher.path` of a first stage."""
_OPTION = (r"\w+=.*", "NAME=VALUE")


def _marked(
    kind: str,
    default: Any,
    meaning: str,
    *,
    choices: tuple[str | int, ...] = (),
    own_code: bool = False,
    form: tuple[str, str] | None = None,
    regex: bool = False,
    within: str | None = None,
) -> Any:
    """A field of the schema. What it may be holds of every value of a tuple; None is always allowed to an optional one.

    Args:
      kind: maths, numerics or cosmetic.
      default: None where the type does not allow it: the field must be set.
      meaning: for `--help`.
      choices: the values that it may be.
      own_code: the user's own `module:function` is allowed, too.
      form: a regular expression for a text that is none of the choices, and words for it.
      regex: a text is a regular expression; if it has a form, the part before its last '='.
      within: an interval of numbers: '[0, 1)', or '[1, inf)' for at least 1.
    """
    allowed = {"choices": choices, "own_code": own_code, "form": form, "regex": regex, "within": within}
    return dataclasses.field(default=default, metadata={"kind": kind, "help": meaning, **allowed})


maths = functools.partial(_marked, "maths")
numerics = functools.partial(_marked, "numerics")
cosmetic = functools.partial(_marked, "cosmetic")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An architecture. A family reads some of the fields alone (`models.FAMILIES`); setting another is an error."""

    name: str | None = maths(
        None,
        "the family of networks",
        choices=(
            "mlp", "lenet5", "cnn", "six_layer_cnn", "bit", "efficientnet_lite0", "efficientnet_lite1",
            "efficientnet_lite2", "mobilenet_v3_large", "vit_small", "vit_base",
        ),
        own_code=True,
    )  # fmt: skip
    features: tuple[int, ...] = maths(
        (),
        "mlp: units of each hidden layer; cnn: channels of its two convolutions; others: widths of the layers that no "
        "skip connection ties, in order (bit: two a unit; mobile networks: expansions; vit: MLPs), or () for their own",
        within="[1, inf)",
    )
    depth: int = maths(0, "bit: layers; 0: blocks says", choices=(0, 26, 50, 101, 152))
    blocks: tuple[int, ...] = maths(
        (), "bit (or depth), efficientnet*, mobilenet*: units in each stage, such as (1,1,1,1)", within="[1, inf)"
    )
    width: float = maths(1.0, "bit, efficientnet*, mobilenet*: factor on the channels", within="(0, 1000]")
    root_pool: str = maths(
        "-inf", "bit: what its root's pool pads with (-inf: distillation release; zero: BiT)", choices=("zero", "-inf")
    )
    norm: str = maths("batch", "mobilenet*: normalisation (distillation paper: group)", choices=("batch", "group"))
    padding: str = maths(
        "same",
        "efficientnet*, mobilenet*: padding and BatchNorm's epsilon of TensorFlow (same) or PyTorch (symmetric)",
        choices=("same", "symmetric"),
    )
    patch_size: int = maths(16, "vit_*: side of a patch in pixels", within="[1, inf)")
    ranks: tuple[str, ...] = maths(
        (),
        "factored layers: fc1=32 of a dense layer or 1 x 1 convolution, conv2=8x16 (inputs, outputs) of a larger one",
        form=(r"[^=]+=\d{1,9}(x\d{1,9})?", "LAYER=RANK or LAYER=INxOUT"),
    )
    activation_bits: int = maths(
        0, "bits of inputs of convolutions and dense layers, with learned ranges; 0: floats", choices=(0, *range(2, 9))
    )
    options: tuple[str, ...] = maths((), "the model's own parameters, such as ('hint=2',)", form=_OPTION)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Where the teacher comes from: nowhere (supervised run), `path`, or `config`; `path` wins."""

    path: str | None = maths(
        None,
        "a run directory, a weight file (.npz, .safetensors, .pth), its https:// or gs:// address, or a name such as "
        "bit-m-r152x2-flowers128; several, separated by commas, are averaged; wins over config; 'teacher' in a first "
        "stage: the same as that of the second",
    )
    config: Config | None = maths(None, "a config that is trained first, inside this run's directory (teacher/)")
    model: ModelConfig = maths(ModelConfig(), "the architecture of a weight file that does not tell its own")
    mean: str = maths("logits", "what of several teachers is averaged", choices=("logits", "probabilities"))
    image_size: tuple[int, ...] = maths(
        (),
        "side in pixels that the teachers see, one or one a teacher; (): what their files say, else view.image_size",
        within="[1, inf)",
    )
    input_mean: tuple[float, ...] = maths((), "mean of its input, on pixels in [0, 1], instead of the card's")
    input_std: tuple[float, ...] = maths((), "its standard deviation, instead of the card's", within="(0, inf)")
    dtype: str = numerics(
        "auto",
        "auto: config.dtype; int8: convolutions in integers, with ranges from the first training images, rest as auto",
        choices=("auto", "float32", "bfloat16", "int8"),
    )
    sharded: bool = numerics(False, "its large weights are split over config.mesh.fsdp devices, too")
    min_accuracy: float = cosmetic(0.0, "refuse a teacher below this accuracy on the evaluation split", within="[0, 1]")
    max_fold_kl: float = cosmetic(0.01, "refuse a teacher that folding changes by more nats of KL", within="[0, inf)")

    @property
    def paths(self) -> tuple[str, ...]:
        """The names or files that `path` lists."""
        return tuple(path.strip() for path in self.path.split(",")) if self.path else ()


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss that the student minimises."""

    name: str = maths(
        "function_matching",
        "the loss",
        choices=("function_matching", "hinton", "logit_regression", "cross_entropy"),
        own_code=True,
    )
    temperature: float = maths(1.0, "function_matching, hinton: T of softmax(logits / T)", within="(0, inf)")
    alpha: float = maths(0.9, "hinton: weight of the soft term; the labels weigh 1 - alpha", within="[0, 1]")
    label_smoothing: float = maths(0.0, "cross_entropy: share of a target spread over all classes", within="[0, 1)")
    scale_soft_by_t2: bool = maths(False, "hinton: multiply the soft term by T^2, so that it does not vanish at high T")
    options: tuple[str, ...] = maths((), "the objective's own parameters, such as ('gamma=2',)", form=_OPTION)


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """The part of an image that the models see."""

    image_size: int = maths(None, "side of the square view in pixels", within="[1, inf)")
    channels: int = maths(3, "3 (colour) or 1 (grey)", choices=(1, 3))
    regime: str = maths(
        "consistent", "who sees what", choices=("fixed", "independent", "consistent", "function_matching")
    )
    mixup: float | None = maths(
        None, "lambda ~ Beta(mixup, mixup); unset: 1 under function_matching, else 0", within="[0, inf)"
    )
    crop: str = maths("inception", "inception: random area and aspect; central: none", choices=("inception", "central"))
    area_min: float = maths(0.05, "inception: least share of the image's area", within="(0, 1]")
    area_max: float = maths(1.0, "inception: greatest share of the image's area", within="(0, 1]")
    reduced_decoding: bool = maths(
        False,
        "inception: decode a JPEG at 1/2, 1/4 or 1/8 of its size where its crop keeps image_size pixels a side: faster "
        "and smoother; the split is then read from disk throughout, whatever cache_bytes",
    )
    flip: bool = maths(True, "flip half of the training images left to right")
    resize: int = maths(
        0, "central crops (evaluation): the shorter side before cropping image_size; 0: image_size", within="[0, inf)"
    )
    student_size: int = maths(
        0, "side in pixels that the student sees, resized down from the view; 0: image_size", within="[0, inf)"
    )

    @property
    def size_for_student(self) -> int:
        """Side in pixels of what the student sees."""
        return self.student_size or self.image_size


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where images and labels come from."""

    name: str = maths(
        "", "digits, random, folder, a TFDS set such as oxford_flowers102, or your own module:function", own_code=True
    )
    path: str | None = maths(None, "folder: its directory, one sub-folder a class, or flat and unlabelled")
    train: str = maths("train", "split to train on, in TFDS syntax, such as train[:90%]")
    validation: str | None = maths(None, "split on which the best checkpoint is chosen; unset: the latest is kept")
    test: str | None = maths("test", "split that the closing table reports")
    num_train_examples: int = maths(0, "size of the training split; checked against the data", within="[0, inf)")
    data_dir: str | None = cosmetic(None, "where TFDS sets are; unset: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    cache_bytes: int = cosmetic(4 << 30, "splits that decode to no more are kept decoded in memory", within="[0, inf)")
    resident: bool = numerics(
        False, "keep the training split on every device, decoded and padded to its largest image, and crop there"
    )
    num_threads: int = cosmetic(2, "threads that make batches", within="[1, inf)")
    prefetch: int = cosmetic(4, "batches made ahead", within="[1, inf)")
    max_bad_fraction: float = cosmetic(0.01, "stop when a larger share of a split cannot be read", within="[0, 1]")
    options: tuple[str, ...] = maths((), "the source's own parameters, such as ('year=2024',)", form=_OPTION)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule."""

    name: str = maths("adam", "the optimiser", choices=("adam", "sgd"))
    lr: float = maths(1e-3, "peak learning rate", within="[0, inf)")
    momentum: float = maths(0.9, "sgd: momentum", within="[0, 1)")
    b1: float = maths(0.9, "adam: decay of the first moment", within="[0, 1)")
    b2: float = maths(0.999, "adam: decay of the second moment", within="[0, 1)")
    mu_dtype: str = maths("bfloat16", "adam: dtype of the first moment", choices=("float32", "bfloat16"))
    clip_norm: float = maths(1.0, "clip the gradient's global norm, before the optimiser; 0: none", within="[0, inf)")
    weight_decay: float = maths(0.0, "decoupled weight decay", within="[0, inf)")
    decay_mask: str = maths(".*/kernel", "full paths of the parameters that decay", regex=True)
    decay_scaled_by_lr: bool = maths(False, "decay by schedule * lr * weight_decay (AdamW), else without lr")
    schedule: str = maths(
        "cosine",
        "of the learning rate; staircase: a tenth at each of boundaries",
        choices=("cosine", "constant", "staircase", "bit_hyperrule"),
    )
    warmup_steps: int = maths(0, "linear warm-up; 0: none, or the BiT-HyperRule's", within="[0, inf)")
    boundaries: tuple[int, ...] = maths((), "staircase: steps at which the rate falls to a tenth")
    max_skipped_steps: int = maths(
        0, "leave out at most so many updates that are not finite; 0: the first one ends the run", within="[0, inf)"
    )


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    """How the student's kernels are represented while they train."""

    layers: str = maths(".*/kernel", "full paths of the parameters that all this is about", regex=True)
    structure: str = maths(
        "weights",
        "what is pruned; N:M: the N largest of every M inputs stay; channels: those that no skip connection ties",
        choices=("weights", "channels"),
        form=(r"[1-9]\d{0,3}:[1-9]\d{0,3}", "N:M, such as 2:4"),
    )
    sparsity: float = maths(0.0, "share of the weights that end at zero, or of the channels that go", within="[0, 1)")
    layer_sparsity: tuple[str, ...] = maths(
        (),
        "by layer: regular expression and share; the first that matches wins",
        form=(r".+=0(\.\d+)?", "PATTERN=SHARE, such as 'fc1/kernel=0.92'"),
        regex=True,
    )
    scope: str = maths(
        "global",
        "global: the smallest of all layers go, each keeps a tenth of the common share; layer: each loses its share",
        choices=("global", "layer"),
    )
    prune_schedule: str = maths("cubic", "iterative: an equal share of what is left", choices=("cubic", "iterative"))
    prune_begin: float = maths(0.0, "share of the run's steps after which weights are pruned", within="[0, 1]")
    prune_end: float = maths(
        0.5, "share after which it ends; at once if equal to prune_begin, and under N:M", within="[0, 1]"
    )
    prune_every_steps: int = maths(100, "prune this often in between", within="[1, inf)")
    bits: int = maths(
        0, "k-means weight sharing: 2^bits values a layer beside zero, from the run's start; 0: none", within="[0, 12]"
    )
    layer_bits: tuple[str, ...] = maths(
        (), "by layer", form=(r".+=([1-9]|1[0-2])", "PATTERN=BITS, 1 to 12, such as 'conv.*=8'"), regex=True
    )
    centroids: str = maths("linear", "where k-means begins", choices=("linear", "density", "random"))
    integer_bits: int = maths(
        0, "kernels as integers of so many bits, symmetric, with a scale a filter; 0: floats", choices=(0, *range(2, 9))
    )
    rest: str = maths("float32", "dtype of all that is neither shared nor integers", choices=("float32", "bfloat16"))
    rank_energy: float = maths(
        0.0, "factor the kernels that the run starts from, keeping this share of their squared norm", within="[0, 1)"
    )
    rank_flops: float = maths(
        0.0, "instead: keep the share with which the kernels need this share of the multiplications", within="[0, 1)"
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work. A batch is always split over all of them."""

    fsdp: int = numerics(
        1, "neighbouring devices that split large parameters and their optimiser state; 1: none", within="[1, inf)"
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a student trained against an objective."""

    seed: int = maths(0, "seed of everything random: parameters, order, crops, mixup", within="[0, inf)")
    num_classes: int = maths(None, "number of classes; checked against the data and the teacher", within="[2, inf)")
    batch_size: int = maths(None, "global batch size, over all devices and processes", within="[1, inf)")
    accumulate_steps: int = maths(1, "parts of the global batch whose gradients are added up", within="[1, inf)")
    total_steps: int = maths(
        0, "length of the run in optimiser steps; when set it wins over total_epochs", within="[0, inf)"
    )
    total_epochs: float = maths(0.0, "length of the run in passes over the training split", within="[0, inf)")
    init_from: str | None = maths(
        None,
        "start from this run's student or weight file (all that teacher.path takes), or 'teacher': from the teacher",
    )
    init_config: Config | None = maths(
        None, "a config that is trained first, inside this run's directory (init/), whose student this run starts from"
    )
    init_fresh: str | None = maths(
        None, "full paths of the parameters that init_from leaves to initialise, such as head/.*", regex=True
    )
    student: ModelConfig = maths(ModelConfig(), "the network that is trained")
    teacher: TeacherConfig = maths(TeacherConfig(), "the network that is matched")
    objective: ObjectiveConfig = maths(ObjectiveConfig(), "the loss")
    view: ViewConfig = maths(ViewConfig(), "crops, mixup and regime")
    source: SourceConfig = maths(SourceConfig(), "the data")
    eval_source: SourceConfig = maths(SourceConfig(), "the data of evaluation, if they are another set's")
    optimizer: OptimizerConfig = maths(OptimizerConfig(), "the update")
    compress: CompressConfig = maths(CompressConfig(), "pruned, shared, rounded and factored weights")
    steps_per_dispatch: int = numerics(
        1,
        "run so many steps as one program (lax.scan): for steps shorter than their launch; evaluations lie between",
        within="[1, inf)",
    )
    dtype: str = numerics(
        "auto", "dtype of activations; auto: bfloat16 on TPU and GPU", choices=("auto", "float32", "bfloat16")
    )
    matmul_precision: str = numerics(
        "default",
        "of products of float32; default: the backend's own, bfloat16 on a TPU, tensorfloat32 on a GPU",
        choices=("default", "bfloat16", "tensorfloat32", "float32"),
    )
    mesh: MeshConfig = numerics(MeshConfig(), "how the devices share the work")
    log_every_steps: int = cosmetic(50, "write training metrics this often", within="[1, inf)")
    eval_every_steps: int = cosmetic(0, "evaluate this often; 0: ten times a run", within="[0, inf)")
    checkpoint_every_steps: int = cosmetic(0, "save this often; 0: with every evaluation", within="[0, inf)")
    grace_seconds: float = cosmetic(
        30.0,
        "after a signal, leave within this time, with what was saved before if need be; 0: however long it takes; only "
        "the outermost config's counts",
        within="[0, inf)",
    )
    keep_latest: int = cosmetic(2, "how many of the newest checkpoints are kept", within="[1, inf)")
    keep_best: int = cosmetic(1, "how many of the best on the validation split are kept", within="[0, inf)")
    log_view_hash: bool = cosmetic(False, "log a hash of each branch's view: proof of who saw what")
    profile_at_step: int = cosmetic(
        0,
        "write a profiler trace of the 5 steps after this one, or of whole dispatches, to the run directory; 0: none",
        within="[0, inf)",
    )

    @property
    def evaluated_on(self) -> SourceConfig:
        """The data of evaluation: those of training, unless another set is named."""
        return self.eval_source if self.eval_source.name else self.source

    @property
    def begins_from(self) -> Config | None:
        """The config of the network that the run starts from, if that is trained in the run's directory, too."""
        return self.teacher.config if self.init_from == OWN_TEACHER else self.init_config

"""The schema of a run: frozen dataclasses, every field known and marked.

A config file assigns to `files.template()`, a complete and locked `ConfigDict`, so that a typo fails at once;
`resolve.resolve` checks the whole and returns the frozen `Config` that everything else reads. A field is one of

* **maths**: it changes what is computed. A resumed run refuses another value; the fingerprint hashes these fields
  alone.
* **numerics**: it changes rounding only. A resumed run says that it is no longer bit-exact and goes on.
* **cosmetic**: it changes what is printed, kept or how fast data arrives.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any


def _marked(kind: str, default: Any, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": meaning})


maths = functools.partial(_marked, "maths")
numerics = functools.partial(_marked, "numerics")
cosmetic = functools.partial(_marked, "cosmetic")


PROFILED_STEPS = 5
OWN_TEACHER = "teacher"
"""As `init_from`, and as the `teacher.path` of a first stage: the run's own teacher."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An architecture. A family reads some of the fields alone (`models.families`); setting another is an error."""

    name: str | None = maths(
        None,
        "mlp, lenet5, cnn, six_layer_cnn, bit, efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, "
        "mobilenet_v3_large, vit_small, vit_base, or your own module:function",
    )
    features: tuple[int, ...] = maths(
        (),
        "mlp: units of each hidden layer; cnn: channels of its two convolutions; in other families the widths of the "
        "layers that no skip connection ties, in order (bit: two a unit; mobile networks: the expansions; vit: the "
        "MLPs), or () for their own",
    )
    depth: int = maths(0, "bit: 26, 50, 101 or 152; 0: blocks says")
    blocks: tuple[int, ...] = maths(
        (), "bit, efficientnet_lite*, mobilenet_v3_large: units in each stage, such as (1,1,1,1); bit: instead of depth"
    )
    width: float = maths(1.0, "bit, efficientnet_lite*, mobilenet_v3_large: factor on the channels, fractions allowed")
    root_pool: str = maths("-inf", "bit: the root's max-pool pads with '-inf' (distillation release) or 'zero' (BiT)")
    norm: str = maths("batch", "mobilenet_v3_large: batch, or group as in the distillation paper")
    padding: str = maths(
        "same",
        "efficientnet_lite*, mobilenet_v3_large: padding and BatchNorm's epsilon of TensorFlow (same) or PyTorch "
        "(symmetric)",
    )
    patch_size: int = maths(16, "vit_*: side of a patch in pixels")
    ranks: tuple[str, ...] = maths(
        (),
        "factored layers, such as ('fc1=32', 'conv2=8x16'): the rank of a dense layer or 1 x 1 convolution, those of "
        "inputs and outputs of a larger one",
    )
    activation_bits: int = maths(
        0,
        "inputs of convolutions and dense layers in this many bits, 2 to 8, with ranges learned on the way; 0: floats",
    )


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
    mean: str = maths("logits", "several teachers are averaged as 'logits' or as 'probabilities'")
    image_size: tuple[int, ...] = maths(
        (), "side in pixels that the teachers see, one or one a teacher; (): what their files say, else view.image_size"
    )
    input_mean: tuple[float, ...] = maths((), "mean of its input, on pixels in [0, 1], instead of the card's")
    input_std: tuple[float, ...] = maths((), "standard deviation of its input, instead of the card's")
    dtype: str = numerics(
        "auto",
        "of its weights and activations: float32, bfloat16, auto: as config.dtype, or int8: convolutions in integers "
        "with ranges from the first training images, the rest as config.dtype",
    )
    sharded: bool = numerics(False, "its large weights are split over config.mesh.fsdp devices, too")
    min_accuracy: float = cosmetic(0.0, "refuse to start unless the teacher reaches this share on the evaluation split")
    max_fold_kl: float = cosmetic(0.01, "refuse to start when folding changes the teacher by more than this KL in nats")

    @property
    def paths(self) -> tuple[str, ...]:
        """What `path` lists."""
        return tuple(path.strip() for path in self.path.split(",")) if self.path else ()


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What the student minimises."""

    name: str = maths(
        "function_matching",
        "function_matching, hinton, logit_regression, cross_entropy, or your own module:function",
    )
    temperature: float = maths(1.0, "function_matching, hinton: T of softmax(logits / T)")
    alpha: float = maths(0.9, "hinton: weight of the soft term; the labels weigh 1 - alpha")
    label_smoothing: float = maths(0.0, "cross_entropy: share of every target that is spread over all classes")
    scale_soft_by_t2: bool = maths(False, "hinton: multiply the soft term by T^2, so that it does not vanish at high T")


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """What the models see of an image."""

    image_size: int = maths(None, "side of the square view in pixels")
    channels: int = maths(3, "3 (colour) or 1 (grey)")
    regime: str = maths("consistent", "fixed, independent, consistent or function_matching: who sees what")
    mixup: float | None = maths(None, "lambda ~ Beta(mixup, mixup); unset: 1 under function_matching, else 0")
    crop: str = maths("inception", "inception (random area and aspect) or central (no augmentation)")
    area_min: float = maths(0.05, "inception: least share of the image's area")
    area_max: float = maths(1.0, "inception: greatest share of the image's area")
    reduced_decoding: bool = maths(
        False,
        "inception: decode a JPEG at 1/2, 1/4 or 1/8 of its size where its crop keeps image_size pixels a side: faster "
        "and smoother; the split is then read from disk throughout, whatever cache_bytes",
    )
    flip: bool = maths(True, "flip half of the training images left to right")
    resize: int = maths(0, "central crops (evaluation): the shorter side before cropping image_size; 0: image_size")
    student_size: int = maths(0, "side in pixels that the student sees, resized down from the view; 0: image_size")

    @property
    def size_for_student(self) -> int:
        """Side in pixels of what the student sees."""
        return self.student_size or self.image_size


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where images and labels come from."""

    name: str = maths("", "digits, random, folder, a TFDS set such as oxford_flowers102, or your own module:function")
    path: str | None = maths(None, "folder: its directory, one sub-folder a class, or flat and unlabelled")
    train: str = maths("train", "split to train on, in TFDS syntax, such as train[:90%]")
    validation: str | None = maths(None, "split on which the best checkpoint is chosen; unset: the latest is kept")
    test: str | None = maths("test", "split that the closing table reports")
    num_train_examples: int = maths(0, "size of the training split; checked against the data")
    data_dir: str | None = cosmetic(None, "where TFDS sets are; unset: $TFDS_DATA_DIR, else ~/tensorflow_datasets")
    cache_bytes: int = cosmetic(4 << 30, "splits that decode to no more than this are decoded once and kept in memory")
    resident: bool = numerics(
        False,
        "keep the decoded training split on every device, padded to its largest image, and crop there: only the random "
        "draws travel (not of eval_source)",
    )
    num_threads: int = cosmetic(2, "threads that make batches")
    prefetch: int = cosmetic(4, "batches made ahead")
    max_bad_fraction: float = cosmetic(0.01, "stop when more than this share of a split's images cannot be read")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule."""

    name: str = maths("adam", "adam or sgd")
    lr: float = maths(1e-3, "peak learning rate")
    momentum: float = maths(0.9, "sgd: momentum")
    b1: float = maths(0.9, "adam: decay of the first moment")
    b2: float = maths(0.999, "adam: decay of the second moment")
    mu_dtype: str = maths("bfloat16", "adam: dtype of the first moment, bfloat16 or float32")
    clip_norm: float = maths(1.0, "clip the global gradient norm, before the optimiser; 0: no clipping")
    weight_decay: float = maths(0.0, "decoupled weight decay")
    decay_mask: str = maths(".*/kernel", "regular expression: full paths of the parameters that decay")
    decay_scaled_by_lr: bool = maths(
        False, "decay by schedule * lr * weight_decay (AdamW), not schedule * weight_decay"
    )
    schedule: str = maths("cosine", "cosine, constant, staircase (a tenth at each of boundaries) or bit_hyperrule")
    warmup_steps: int = maths(0, "linear warm-up; 0: none, or the BiT-HyperRule's")
    boundaries: tuple[int, ...] = maths((), "staircase: steps at which the rate falls to a tenth")
    max_skipped_steps: int = maths(
        0, "leave out at most so many updates whose loss or gradient is not finite; 0: the first one ends the run"
    )


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    """How the student's kernels are represented while they train."""

    layers: str = maths(".*/kernel", "regular expression: full paths of the parameters that all this is about")
    structure: str = maths(
        "weights",
        "what is pruned: weights; N:M, such as 2:4: the N largest of every M inputs stay; or channels, cut out of the "
        "network that the run starts from, where no skip connection ties them",
    )
    sparsity: float = maths(0.0, "share of the weights that are zero in the end, or of the channels that go")
    layer_sparsity: tuple[str, ...] = maths(
        (), "by layer, such as ('fc1/kernel=0.92',): regular expression and share; the first that matches wins"
    )
    scope: str = maths(
        "global",
        "global: the smallest of all layers go, but each keeps a tenth of the share that all keep; layer: each loses "
        "its own share",
    )
    prune_schedule: str = maths("cubic", "cubic, or iterative: the same share of what is left each time")
    prune_begin: float = maths(0.0, "share of the run's steps after which pruning of weights begins")
    prune_end: float = maths(0.5, "share after which it ends; at once if equal to prune_begin, and under N:M")
    prune_every_steps: int = maths(100, "prune this often in between")
    bits: int = maths(0, "k-means weight sharing: 2^bits values a layer beside zero, from the run's start; 0: none")
    layer_bits: tuple[str, ...] = maths((), "by layer, such as ('conv.*=8',)")
    centroids: str = maths("linear", "where k-means begins: linear, density or random")
    integer_bits: int = maths(0, "kernels as integers of 2 to 8 bits, symmetric, with a scale a filter; 0: floats")
    rest: str = maths("float32", "what is not shared and no integers, biases for one: float32 or bfloat16")
    rank_energy: float = maths(
        0.0, "factor the kernels of the network that the run starts from, keeping this share of their squared norm"
    )
    rank_flops: float = maths(
        0.0, "instead: keep the share with which the kernels need this share of the multiplications"
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How the devices share the work. A batch is always split over all of them."""

    fsdp: int = numerics(
        1, "neighbouring devices that split large parameters and their optimiser state among them; 1: each has all"
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: a student trained against an objective."""

    seed: int = maths(0, "seed of everything random: parameters, order, crops, mixup")
    num_classes: int = maths(None, "number of classes; checked against the data and the teacher")
    batch_size: int = maths(None, "global batch size, over all devices and processes")
    accumulate_steps: int = maths(1, "split the global batch into this many parts and add up their gradients")
    total_steps: int = maths(0, "length of the run in optimiser steps; when set it wins over total_epochs")
    total_epochs: float = maths(0.0, "length of the run in passes over the training split")
    init_from: str | None = maths(
        None,
        "start from this run's student or weight file (all that teacher.path takes), or 'teacher': from the teacher",
    )
    init_config: Config | None = maths(
        None, "a config that is trained first, inside this run's directory (init/), whose student this run starts from"
    )
    init_fresh: str | None = maths(
        None, "regular expression: full paths of the parameters that init_from leaves to initialise, such as head/.*"
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
        "run so many steps as one program (lax.scan): where a step takes less time than launching it; evaluations, "
        "checkpoints and leaving on a signal come between",
    )
    dtype: str = numerics("auto", "dtype of activations: float32, bfloat16, or auto: bfloat16 on TPU and GPU")
    matmul_precision: str = numerics(
        "default",
        "of products of float32: bfloat16, tensorfloat32, float32, or default: the backend's own, bfloat16 on a TPU, "
        "tensorfloat32 on a GPU",
    )
    mesh: MeshConfig = numerics(MeshConfig(), "how the devices share the work")
    log_every_steps: int = cosmetic(50, "write training metrics this often")
    eval_every_steps: int = cosmetic(0, "evaluate this often; 0: ten times a run")
    checkpoint_every_steps: int = cosmetic(0, "save this often; 0: with every evaluation")
    grace_seconds: float = cosmetic(
        30.0,
        "after a signal, leave within this time, with what was saved before if need be; 0: however long it takes; only "
        "the outermost config's counts",
    )
    keep_latest: int = cosmetic(2, "how many of the newest checkpoints are kept")
    keep_best: int = cosmetic(1, "how many of the best on the validation split are kept")
    log_view_hash: bool = cosmetic(False, "log a hash of each branch's view: proof of who saw what")
    profile_at_step: int = cosmetic(
        0, "write a profiler trace of the 5 steps after this one, or of whole dispatches, to the run directory; 0: none"
    )

    @property
    def evaluated_on(self) -> SourceConfig:
        """The data of evaluation: those of training, unless another set is named."""
        return self.eval_source if self.eval_source.name else self.source

    @property
    def begins_from(self) -> Config | None:
        """The config of the network that the run starts from, if that is trained in the run's directory, too."""
        return self.teacher.config if self.init_from == OWN_TEACHER else self.init_config

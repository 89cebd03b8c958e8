"""Defines the schema of a run: frozen dataclasses, with every field known and marked.

A config file assigns to `template.template()`, a complete and locked `ConfigDict`, so that a typo fails at once;
`resolve.resolve` checks the whole and returns the frozen `Config` that everything else reads. A field is one of

* **maths**: it changes what is computed. A resumed run refuses another value. The fingerprint hashes it.
* **place**: it says where data or a network lie. A resumed run refuses another content (`training.identity`), but goes
  on where the same content lies elsewhere. The fingerprint hashes it as it is typed.
* **numerics**: it changes rounding only. A resumed run says that it is no longer bit-exact and goes on.
* **cosmetic**: it changes what is printed, what is kept, or how fast data arrives.

A field also says what it may be (`_marked`): `--help` prints that, and `checks.check_fields` reads it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

PROFILED_STEPS = 5
PATH_SOURCES = ("folder", "idx")
"""Names the sources of ours that read the directory `path`."""
LAYOUTS = ("auto", "class", "split/class")
"""Says which sub-folders of a folder are classes."""
BIT_DEPTHS = (8, 10, 12, 14, 16)
"""Numbers of bits that a value may use in a file of more than 8 bits."""
BIT_DEPTH = BIT_DEPTHS[-1]
"""The one that is taken where nothing else is known."""
OWN_TEACHER = "teacher"
"""Names the run's own teacher, in `init_from` and in the `teacher.path` of a first stage."""
FITS = ("crop", "squash", "pad")
"""Names the ways in which an image becomes a square; the first is the default."""
PAD_GREY = 128
"""Value of every channel beside an image that is padded to a square, of 0 to 255."""
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
    """Makes a field of the schema. Its limits hold for every value of a tuple; an optional field may always be None.

    Args:
      kind: maths, place, numerics or cosmetic.
      default: default value; None, if the type does not allow it, for a field that must be set.
      meaning: help text for `--help`.
      choices: the values that it may be.
      own_code: True if the user's own `module:function` is allowed, too.
      form: a regular expression for a text that is none of the choices, and words for it.
      regex: True if a text is a regular expression; if it has a form, the part before its last '='.
      within: an interval of numbers: '[0, 1)', or '[1, inf)' for at least 1.
    """
    allowed = {"choices": choices, "own_code": own_code, "form": form, "regex": regex, "within": within}
    return dataclasses.field(default=default, metadata={"kind": kind, "help": meaning, **allowed})


maths = functools.partial(_marked, "maths")
place = functools.partial(_marked, "place")
numerics = functools.partial(_marked, "numerics")
cosmetic = functools.partial(_marked, "cosmetic")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Describes an architecture. A family reads some fields alone (`models.FAMILIES`); setting another is an error."""

    name: str | None = maths(
        None,
        "Names the family of networks.",
        choices=(
            "mlp", "lenet5", "cnn", "six_layer_cnn", "bit", "efficientnet_lite0", "efficientnet_lite1",
            "efficientnet_lite2", "mobilenet_v3_large", "vit_small", "vit_base",
        ),
        own_code=True,
    )  # fmt: skip
    features: tuple[int, ...] = maths(
        (),
        "Widths. mlp: units of each hidden layer; cnn: channels of its two convolutions; others: widths of the layers "
        "that no skip connection ties, in order (bit: two a unit; mobile networks: expansions; vit: MLPs); () keeps "
        "their own.",
        within="[1, inf)",
    )
    depth: int = maths(0, "Number of layers of a bit; 0: blocks sets it.", choices=(0, 26, 50, 101, 152))
    blocks: tuple[int, ...] = maths(
        (), "Units in each stage, such as (1,1,1,1); for bit (or depth), efficientnet*, mobilenet*.", within="[1, inf)"
    )
    width: float = maths(1.0, "Multiplies the channels of bit, efficientnet*, mobilenet*.", within="(0, 1000]")
    root_pool: str = maths(
        "-inf", "Pads the pool of bit's root with it (-inf: distillation release; zero: BiT).", choices=("zero", "-inf")
    )
    norm: str = maths(
        "batch", "Chooses the normalisation of mobilenet* (distillation paper: group).", choices=("batch", "group")
    )
    padding: str = maths(
        "same",
        "Pads efficientnet*, mobilenet*, and sets BatchNorm's epsilon, as TensorFlow (same) or PyTorch (symmetric).",
        choices=("same", "symmetric"),
    )
    patch_size: int = maths(16, "Side of a patch of vit_*, in pixels.", within="[1, inf)")
    ranks: tuple[str, ...] = maths(
        (),
        "Factors layers: fc1=32 a dense layer or 1 x 1 convolution, conv2=8x16 (inputs, outputs) a larger one.",
        form=(r"[^=]+=\d{1,9}(x\d{1,9})?", "LAYER=RANK or LAYER=INxOUT"),
    )
    activation_bits: int = maths(
        0,
        "Rounds the inputs of convolutions and dense layers to so many bits, with learned ranges; 0: floats.",
        choices=(0, *range(2, 9)),
    )
    options: tuple[str, ...] = maths((), "Sets the model's own parameters, such as ('hint=2',).", form=_OPTION)


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Says where the teacher comes from: nowhere (supervised run), `path`, or `config`; `path` wins."""

    path: str | None = place(
        None,
        "Names the teacher: a run directory, a weight file (.npz, .safetensors, .pth), its https:// or gs:// address, "
        "or a name such as bit-m-r152x2-flowers128. Several, separated by commas, are averaged. It wins over config. "
        "'teacher' in a first stage is the teacher of the second.",
    )
    config: Config | None = maths(
        None, "Config of a teacher that is trained first, in this run's directory (teacher/)."
    )
    model: ModelConfig = maths(ModelConfig(), "Architecture of a weight file that does not tell its own.")
    mean: str = maths("logits", "Chooses what of several teachers is averaged.", choices=("logits", "probabilities"))
    image_size: tuple[int, ...] = maths(
        (),
        "Side of the teachers' view in pixels, one or one a teacher; (): what their files say, else view.image_size.",
        within="[1, inf)",
    )
    input_mean: tuple[float, ...] = maths(
        (), "Mean of the teacher's input, on pixels in [0, 1], instead of the card's."
    )
    input_std: tuple[float, ...] = maths(
        (), "Standard deviation of the teacher's input, instead of the card's.", within="(0, inf)"
    )
    dtype: str = numerics(
        "auto",
        "Computes in this dtype. auto: config.dtype; int8: convolutions in integers, with ranges from the first "
        "training images, rest as auto.",
        choices=("auto", "float32", "bfloat16", "int8"),
    )
    sharded: bool = numerics(False, "Splits the teacher's large weights over config.mesh.fsdp devices, too.")
    min_accuracy: float = cosmetic(
        0.0, "Stops the run if the teacher's accuracy on the evaluation split is below this fraction.", within="[0, 1]"
    )
    max_fold_kl: float = cosmetic(
        0.01, "Stops the run if folding changes the teacher by more nats of KL.", within="[0, inf)"
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """Splits `path` into the names or files that it lists."""
        return tuple(path.strip() for path in self.path.split(",")) if self.path else ()


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Describes the loss that the student minimises."""

    name: str = maths(
        "function_matching",
        "Names the loss.",
        choices=("function_matching", "hinton", "logit_regression", "cross_entropy"),
        own_code=True,
    )
    temperature: float = maths(1.0, "T of softmax(logits / T); for function_matching, hinton.", within="(0, inf)")
    alpha: float = maths(0.9, "Weight of hinton's soft term; the labels weigh 1 - alpha.", within="[0, 1]")
    label_smoothing: float = maths(
        0.0, "Spreads this share of cross_entropy's target over all classes.", within="[0, 1)"
    )
    scale_soft_by_t2: bool = maths(False, "Multiplies hinton's soft term by T^2, so that it does not vanish at high T.")
    options: tuple[str, ...] = maths((), "Sets the objective's own parameters, such as ('gamma=2',).", form=_OPTION)


@dataclasses.dataclass(frozen=True)
class ViewConfig:
    """Describes the part of an image that the models see."""

    image_size: int = maths(None, "Side of the square view, in pixels.", within="[1, inf)")
    channels: int = maths(3, "Channels of the view: 3 (colour) or 1 (grey).", choices=(1, 3))
    fit: str = maths(
        FITS[0],
        "Makes a square of an image. crop: cuts its centre; squash: shows all of it, each side scaled on its own; pad: "
        f"shows all of it in its own shape, on grey ({PAD_GREY}). Random crops of the last two are of that square.",
        choices=FITS,
    )
    regime: str = maths(
        "consistent",
        "Chooses who sees what. function_matching: one crop, mixed up; consistent: one crop; independent: a crop each; "
        "fixed: the teacher sees the centre.",
        choices=("fixed", "independent", "consistent", "function_matching"),
    )
    mixup: float | None = maths(
        None, "Draws lambda from Beta(mixup, mixup); unset: 1 under function_matching, else 0.", within="[0, inf)"
    )
    crop: str = maths(
        "inception",
        "Crops at random area and aspect (inception), or at the centre (central).",
        choices=("inception", "central"),
    )
    area_min: float = maths(0.05, "Least share of the image's area in an inception crop.", within="(0, 1]")
    area_max: float = maths(1.0, "Greatest share of the image's area in an inception crop.", within="(0, 1]")
    reduced_decoding: bool = maths(
        False,
        "Decodes a JPEG at 1/2, 1/4 or 1/8 of its size if its inception crop keeps image_size pixels a side: faster "
        "and smoother. The split is then always read from disk, whatever cache_bytes.",
    )
    flip: bool = maths(True, "Flips half of the training images left to right.")
    resize: int = maths(
        0,
        "Side (shorter; fit=squash: both; fit=pad: longer) before a central crop (evaluation) of image_size; 0: "
        "image_size.",
        within="[0, inf)",
    )
    student_size: int = maths(
        0, "Resizes the view down to this side in pixels for the student; 0: image_size.", within="[0, inf)"
    )

    @property
    def size_for_student(self) -> int:
        """Returns the side in pixels of the student's view."""
        return self.student_size or self.image_size


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Says where images and labels come from."""

    name: str = maths(
        "",
        "Names the data: digits, random, folder, idx, a TFDS set such as oxford_flowers102, or your own "
        "module:function.",
        own_code=True,
    )
    path: str | None = place(
        None, "Directory of a folder (one sub-folder a class, or flat and unlabelled) or of idx files."
    )
    layout: str = maths(
        "auto",
        "Says which sub-folders of a folder are classes. class: DIR/CLASS; split/class: DIR/SPLIT/CLASS, both with all "
        "that lies below; auto: found out, or asked for.",
        choices=LAYOUTS,
    )
    fractions: tuple[float, ...] = maths(
        (0.8, 0.1, 0.1),
        "Cuts a folder without splits into train, validation and test, if one of the latter two is named, by a hash of "
        "each file.",
        within="[0, 1]",
    )
    group: str = maths(
        "", "Keeps the files of a folder in one split whose paths have the same match of its first (group).", regex=True
    )
    label: str = maths(
        "",
        "Names the feature of a TFDS set that is learned; unset: the one that the set itself names, label or its only.",
    )
    train: str = maths("train", "Split to train on, in TFDS syntax, such as train[:90%].")
    validation: str | None = maths(None, "Split on which the best checkpoint is chosen; unset: the latest is kept.")
    test: str | None = maths("test", "Split that the closing table reports.")
    num_train_examples: int = maths(0, "Number of training images; checked against the data.", within="[0, inf)")
    data_dir: str | None = cosmetic(None, "Root of the TFDS sets; unset: $TFDS_DATA_DIR, else ~/tensorflow_datasets.")
    cache_bytes: int = cosmetic(4 << 30, "Keeps splits that decode to no more in memory, decoded.", within="[0, inf)")
    resident: bool = numerics(
        False, "Keeps the training split on every device, decoded and padded to its largest image, and crops there."
    )
    num_threads: int = cosmetic(2, "Number of threads that make batches.", within="[1, inf)")
    prefetch: int = cosmetic(4, "Number of batches made ahead.", within="[1, inf)")
    max_bad_fraction: float = cosmetic(
        0.01, "Stops the run if a larger share of a split, and more than one image, cannot be read.", within="[0, 1]"
    )
    allow_empty_classes: bool = cosmetic(False, "Trains although a class of a folder has no training image.")
    bit_depth: str = maths(
        "auto",
        "Bits that are used of each value in files of more than 8: a scan of 12 bits has values up to 4095. auto: 8, "
        "12 or 16, by the values of a sample of training images.",
        choices=("auto", *map(str, BIT_DEPTHS)),
    )
    balance: str = maths(
        "none",
        "Draws training images by class. full: all classes equally often; sqrt: by the root of their sizes. Where no "
        "label enters the loss (function_matching), this alone evens out classes.",
        choices=("none", "sqrt", "full"),
    )
    drop_duplicates: bool = maths(
        False,
        "Leaves out training images that are also in the validation or test split, exactly or nearly, or in another "
        "class. num_train_examples and total_epochs still count all images.",
    )
    duplicates_seconds: float = cosmetic(
        60.0,
        "Before a run, looks for such images and names them in duplicates.csv, if that takes no more seconds; 0: does "
        "not look. drop_duplicates looks however long it takes.",
        within="[0, inf)",
    )
    options: tuple[str, ...] = maths((), "Sets the source's own parameters, such as ('year=2024',).", form=_OPTION)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Describes the update rule."""

    name: str = maths("adam", "Names the optimiser.", choices=("adam", "sgd"))
    lr: float = maths(1e-3, "Peak learning rate.", within="[0, inf)")
    momentum: float = maths(0.9, "Momentum of sgd.", within="[0, 1)")
    b1: float = maths(0.9, "Decay of adam's first moment.", within="[0, 1)")
    b2: float = maths(0.999, "Decay of adam's second moment.", within="[0, 1)")
    mu_dtype: str = maths("bfloat16", "Dtype of adam's first moment.", choices=("float32", "bfloat16"))
    clip_norm: float = maths(1.0, "Clips the gradient's global norm, before the optimiser; 0: none.", within="[0, inf)")
    weight_decay: float = maths(0.0, "Decoupled weight decay.", within="[0, inf)")
    decay_mask: str = maths(".*/kernel", "Full paths of the parameters that decay.", regex=True)
    decay_scaled_by_lr: bool = maths(False, "Decays by schedule * lr * weight_decay (AdamW), else without lr.")
    schedule: str = maths(
        "cosine",
        "Chooses the schedule of the learning rate; staircase: a tenth at each of boundaries.",
        choices=("cosine", "constant", "staircase", "bit_hyperrule"),
    )
    warmup_steps: int = maths(0, "Steps of linear warm-up; 0: none, or the BiT-HyperRule's.", within="[0, inf)")
    boundaries: tuple[int, ...] = maths((), "Steps at which staircase lowers the rate to a tenth.")
    max_skipped_steps: int = maths(
        0, "Leaves out at most so many updates that are not finite; 0: the first one ends the run.", within="[0, inf)"
    )


@dataclasses.dataclass(frozen=True)
class CompressConfig:
    """Says how the student's kernels are represented while they train."""

    layers: str = maths(".*/kernel", "Full paths of the parameters that are compressed.", regex=True)
    structure: str = maths(
        "weights",
        "Chooses what goes. N:M: the N largest of every M inputs stay; channels: those that no skip connection ties.",
        choices=("weights", "channels"),
        form=(r"[1-9]\d{0,3}:[1-9]\d{0,3}", "N:M, such as 2:4"),
    )
    sparsity: float = maths(0.0, "Share of the weights that end at zero, or of the channels that go.", within="[0, 1)")
    layer_sparsity: tuple[str, ...] = maths(
        (),
        "Sets sparsity by layer: regular expression and share. The first that matches wins.",
        form=(r".+=0(\.\d+)?", "PATTERN=SHARE, such as 'fc1/kernel=0.92'"),
        regex=True,
    )
    scope: str = maths(
        "global",
        "Chooses where to prune. global: the smallest of all layers go, each keeps a tenth of the common share; layer: "
        "each loses its share.",
        choices=("global", "layer"),
    )
    prune_schedule: str = maths(
        "cubic",
        "Chooses the speed of pruning. iterative: an equal share of what is left each time.",
        choices=("cubic", "iterative"),
    )
    prune_begin: float = maths(0.0, "Share of the run's steps after which pruning begins.", within="[0, 1]")
    prune_end: float = maths(
        0.5, "Share after which it ends; at once if equal to prune_begin, and under N:M.", within="[0, 1]"
    )
    prune_every_steps: int = maths(100, "Prunes after every so many steps in between.", within="[1, inf)")
    bits: int = maths(
        0,
        "Shares weights by k-means: 2^bits values a layer beside zero, from the run's start; 0: none.",
        within="[0, 12]",
    )
    layer_bits: tuple[str, ...] = maths(
        (), "Sets bits by layer.", form=(r".+=([1-9]|1[0-2])", "PATTERN=BITS, 1 to 12, such as 'conv.*=8'"), regex=True
    )
    centroids: str = maths("linear", "Chooses where k-means begins.", choices=("linear", "density", "random"))
    integer_bits: int = maths(
        0,
        "Rounds kernels to integers of so many bits, symmetric, with a scale a filter; 0: floats.",
        choices=(0, *range(2, 9)),
    )
    rest: str = maths(
        "float32", "Dtype of all other parameters: not shared, no integers.", choices=("float32", "bfloat16")
    )
    rank_energy: float = maths(
        0.0, "Factors the kernels that the run starts from, at this share of their squared norm.", within="[0, 1)"
    )
    rank_flops: float = maths(
        0.0, "Factors them instead until all kernels need this share of the multiplications.", within="[0, 1)"
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Says how the devices share the work. A batch is always split over all of them."""

    fsdp: int = numerics(
        1,
        "Splits large parameters and their optimiser state over so many neighbouring devices; 1: none.",
        within="[1, inf)",
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Describes one run: a student trained against an objective."""

    seed: int = maths(0, "Seed of everything random: parameters, order, crops, mixup.", within="[0, inf)")
    num_classes: int = maths(None, "Number of classes; checked against the data and the teacher.", within="[2, inf)")
    batch_size: int = maths(None, "Global batch size, over all devices and processes.", within="[1, inf)")
    accumulate_steps: int = maths(
        1, "Splits the global batch into so many parts and adds their gradients.", within="[1, inf)"
    )
    total_steps: int = maths(
        0, "Length of the run in optimiser steps; when set it wins over total_epochs.", within="[0, inf)"
    )
    total_epochs: float = maths(0.0, "Length of the run in passes over the training split.", within="[0, inf)")
    init_from: str | None = place(
        None,
        "Starts from this run's student or weight file (all that teacher.path takes), or from the teacher ('teacher').",
    )
    init_config: Config | None = maths(
        None, "Config that is trained first, in this run's directory (init/). This run starts from its student."
    )
    init_fresh: str | None = maths(
        None, "Full paths of the parameters that are initialised in spite of init_from, such as head/.*", regex=True
    )
    student: ModelConfig = maths(ModelConfig(), "The network that is trained.")
    teacher: TeacherConfig = maths(TeacherConfig(), "The network that is matched.")
    objective: ObjectiveConfig = maths(ObjectiveConfig(), "The loss.")
    view: ViewConfig = maths(ViewConfig(), "Crops, mixup and regime.")
    source: SourceConfig = maths(SourceConfig(), "The data.")
    eval_source: SourceConfig = maths(SourceConfig(), "The data of evaluation, if they are another set's.")
    optimizer: OptimizerConfig = maths(OptimizerConfig(), "The update rule.")
    compress: CompressConfig = maths(CompressConfig(), "Pruned, shared, rounded and factored weights.")
    steps_per_dispatch: int = numerics(
        1,
        "Runs so many steps as one program (lax.scan). Raise it if a step is shorter than its launch; evaluations lie "
        "between.",
        within="[1, inf)",
    )
    dtype: str = numerics(
        "auto", "Dtype of activations; auto: bfloat16 on TPU and GPU.", choices=("auto", "float32", "bfloat16")
    )
    matmul_precision: str = numerics(
        "default",
        "Precision of products of float32; default: the backend's own, bfloat16 on a TPU, tensorfloat32 on a GPU.",
        choices=("default", "bfloat16", "tensorfloat32", "float32"),
    )
    mesh: MeshConfig = numerics(MeshConfig(), "Division of the work among the devices.")
    log_every_steps: int = cosmetic(50, "Writes training metrics every so many steps.", within="[1, inf)")
    eval_every_steps: int = cosmetic(0, "Evaluates every so many steps; 0: ten times a run.", within="[0, inf)")
    checkpoint_every_steps: int = cosmetic(0, "Saves every so many steps; 0: with every evaluation.", within="[0, inf)")
    grace_seconds: float = cosmetic(
        30.0,
        "Ends the run within so many seconds after a signal, without a new checkpoint if need be; 0: however long it "
        "takes. Only the outermost config's counts.",
        within="[0, inf)",
    )
    keep_latest: int = cosmetic(2, "Number of the newest checkpoints that are kept.", within="[1, inf)")
    keep_best: int = cosmetic(1, "Number of the best on the validation split that are kept.", within="[0, inf)")
    select_by: str = cosmetic(
        "accuracy",
        "Metric on the validation split that says which checkpoint is the best: the greatest, but the least nll or kl.",
        choices=("accuracy", "balanced_accuracy", "macro_f1", "top5", "nll", "agreement", "kl"),
    )
    log_view_hash: bool = cosmetic(False, "Logs a hash of each branch's view, to prove who saw what.")
    profile_at_step: int = cosmetic(
        0,
        "Writes a profiler trace of the 5 steps after this one, or of whole dispatches, to the run directory; 0: none.",
        within="[0, inf)",
    )

    @property
    def evaluated_on(self) -> SourceConfig:
        """Returns the data of evaluation: those of training, unless another set is named."""
        return self.eval_source if self.eval_source.name else self.source

    @property
    def begins_from(self) -> Config | None:
        """Returns the config of the network that the run starts from, if the same run directory trains it."""
        return self.teacher.config if self.init_from == OWN_TEACHER else self.init_config

"""Sets a run up before its first step: opens data, builds networks and steps, freezes and checks the teacher."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import CompressConfig, Config
from big_distill.data import Source, duplicates
from big_distill.data.pipeline import EvalPipeline, TrainPipeline
from big_distill.data.reading import median_side
from big_distill.data.sources import check_no_class_is_empty, check_source, class_names_of
from big_distill.errors import ConfigError, DataError
from big_distill.files import atomic
from big_distill.parallel import processes, sharding
from big_distill.run_dir.checkpoints import saved_steps
from big_distill.run_dir.layout import DUPLICATES_FILE
from big_distill.state import Resident, Teacher, TrainState
from big_distill.step import objectives
from big_distill.teacher import check
from big_distill.terminal import say, say_once
from big_distill.training import identity, initial
from big_distill.training.computation import Computation, build
from big_distill.training.evaluation import evaluate, open_eval, open_split, remarks, training_source
from big_distill.training.identity import Identities

Scores = dict[str, dict[str, float]]
"""split -> metric -> value"""


@dataclasses.dataclass(frozen=True)
class Data:
    """Holds the opened splits of a run. Nothing of them is decoded yet.

    source: the training split.
    evaluation: batches of the validation and of the test split, as far as they exist.
    class_names: names in the order of the labels; () if the data have none.
    labels_for: name of the objective if it reads labels, which every training example must have then.
    identity: hashes of the training and of the evaluation splits.
    """

    source: Source
    evaluation: dict[str, EvalPipeline]
    class_names: tuple[str, ...]
    labels_for: str | None
    identity: Identities


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds a run as its loop takes it. `set_up` makes it, `with_teacher` completes it.

    student: its architecture with the names of its classes, which may be the teacher's.
    initial: the network that the student starts from, if there is one.
    identity: hashes of the data, the networks and the config, which a resume compares.
    """

    computation: Computation
    student: weights.ConfigArchitecture
    workdir: pathlib.Path
    checked_teacher: check.Checked | None
    initial: weights.Network | None
    train_data: TrainPipeline
    eval_data: dict[str, EvalPipeline]
    identity: Identities

    @property
    def config(self) -> Config:
        """Returns the resolved config."""
        return self.computation.config

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprint that the run began with; known from `with_teacher` on."""
        config = self.identity["config"]
        assert config is not None
        return config["sha256"]

    @property
    def mesh(self) -> Mesh:
        """Returns the mesh of the devices that the run uses."""
        return self.computation.mesh

    @property
    def teacher(self) -> Teacher | None:
        """Returns the teacher as the steps take it; None without one, and until `with_teacher`."""
        return self.checked_teacher.teacher if self.checked_teacher else None

    def place_resident(self) -> Resident | None:
        """Puts the training split on every device, if the config asks for that.

        Raises:
          DataError: the split does not fit.
        """
        split = self.train_data.resident()
        needed = sum(x.nbytes for x in jax.tree.leaves(split))
        memory = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
        free = memory.get("bytes_limit", needed) - memory.get("bytes_in_use", 0)
        if needed > max(free, 0):
            raise DataError(
                f"config.source.resident=True, but {self.train_data.source.name} takes {needed / 1e6:,.1f} MB on every "
                f"device, which has {free / 1e6:,.1f} MB left"
            )
        on_devices = sharding.put(split, sharding.replicated(self.mesh))
        if split is not None:
            self.train_data.forget_pixels()
        return on_devices

    def evaluate(self, state: TrainState, stop: Callable[[], bool] | None = None) -> Scores:
        """Evaluates on the validation and test splits that exist. `stop` is that of `evaluation.evaluate`."""
        return {
            split: evaluate(self.computation.eval_step, state.variables, self.teacher, data, self.mesh, stop)
            for split, data in self.eval_data.items()
        }


def open_data(config: Config, bit_depth: int | None = None) -> Data:
    """Opens the splits of a run. `bit_depth` is that of a run which goes on; None takes the config's.

    Raises:
      DataError: the data are not what the config says.
    """
    source = open_split(config, training_source(config), config.source.train, bit_depth)
    labels_for = config.objective.name if "labels" in objectives.build(config.objective).reads else None
    if config.eval_source.name and labels_for is None:
        # Another set's labels mean nothing here.
        source = dataclasses.replace(source, num_classes=None, class_names=(), empty_classes=())
    for remark in source.remarks:
        say_once(remark)
    allowed = config.source.allow_empty_classes
    check_source(source, config.source.num_train_examples, config.num_classes, labels_for, allowed)
    splits = {"validation": config.evaluated_on.validation, "test": config.evaluated_on.test}
    evaluation = {name: open_eval(config, split, source.bit_depth) for name, split in splits.items() if split}
    for opened in (pipeline.source for pipeline in evaluation.values()):
        for remark in remarks(config, opened):
            say_once(remark)
    if config.select_by not in ("accuracy", "agreement", "kl") and evaluation["validation"].source.num_classes is None:
        raise ConfigError(
            f"config.select_by={config.select_by!r} needs labels, but {evaluation['validation'].source.name} has none; "
            "agreement and kl need a teacher alone"
        )
    names = next((data.source.class_names for data in evaluation.values()), ())
    for remark in _remarks_on_sizes(config, source):
        say_once(remark)
    hashes = identity.of_data(source, [split.source for split in evaluation.values()])
    return Data(source, evaluation, class_names_of(source, names), labels_for, hashes)


def _remarks_on_sizes(config: Config, source: Source) -> list[str]:
    """Warns of a view that is larger than the images, and of a teacher that is trained at another size than the view's.

    A flag that sets one of the two sizes leaves the other as it is.
    """
    remarks, size, side = [], config.view.image_size, median_side(source)
    if side is not None and side < size:
        remarks.append(
            f"config.view.image_size={size} is larger than the images of {source.name}, whose shorter side is "
            f"{side:g} px (the median of a few): they are enlarged"
        )
    if (inner := config.teacher.config) is not None and inner.view.size_for_student != size:
        remarks.append(
            f"the teacher is trained at {inner.view.size_for_student} px, but config.view.image_size={size} for the "
            f"student; --config.teacher.config.view.image_size={size} trains it at that size, too"
        )
    return remarks


def without_duplicates(config: Config, workdir: pathlib.Path, data: Data) -> Data:
    """Looks for duplicates before a run begins, and says what it found. Leaves them out of training if asked.

    Raises:
      DataError: too few training images are left.
    """
    options, source = config.source, data.source
    evaluated = {pipeline.source.fingerprint: name for name, pipeline in data.evaluation.items()}  # each split once
    splits = {duplicates.TRAIN: source} | {name: data.evaluation[name].source for name in evaluated.values()}
    dropped = processes.on_first_process(lambda: _duplicates(config, workdir, splits))
    if not options.drop_duplicates:
        return data
    left = source.part(np.setdiff1d(np.arange(source.num_examples), dropped))
    say(f"{source.name}: trains on {left.num_examples:,} of {source.num_examples:,} images, without duplicates")
    if not left.num_examples:
        raise DataError(f"config.source.drop_duplicates=True leaves no training image of {source.name}")
    check_no_class_is_empty(left, options.allow_empty_classes)
    left_out = {"name": f"{len(dropped):,} duplicates of {source.name}", "sha256": left.fingerprint}
    return dataclasses.replace(data, source=left, identity={**data.identity, "left_out": left_out})


def _duplicates(config: Config, workdir: pathlib.Path, splits: dict[str, Source]) -> list[int]:
    """Lists the training images that are duplicates, if it looks. A run's parts (`teacher/`) share its table."""
    path, options = workdir / DUPLICATES_FILE, config.source
    if not options.drop_duplicates and (saved_steps(workdir) or not options.duplicates_seconds):
        return []
    for kept in (path, workdir.parent / DUPLICATES_FILE):
        found = duplicates.from_csv(kept.read_bytes(), splits) if kept.is_file() else None
        if found is not None:
            break
    else:
        seconds = np.inf if options.drop_duplicates else options.duplicates_seconds
        found = duplicates.find(splits, options.num_threads, seconds)
        if found is None:
            say(f"did not look for duplicates: that takes more than config.source.duplicates_seconds={seconds:g}")
            return []
        atomic.write(path, duplicates.to_csv(found, splits))
        if found:
            advice = (
                ""
                if options.drop_duplicates
                else "; a new run with --config.source.drop_duplicates trains without them"
            )
            say(f"duplicates: {duplicates.described(found, splits)} ({path}){advice}")
    return sorted({row.number for row in found if row.split == duplicates.TRAIN})


def set_up(config: Config, workdir: pathlib.Path, data: Data) -> Run:
    """Builds the networks and the steps, all but the teacher. Compiles nothing yet.

    Until the network that the student starts from is trained, the run is without it.
    """
    mesh, source = sharding.make_mesh(config.mesh.fsdp), data.source
    network = None
    if saved_steps(workdir):
        student = weights.read_architecture(workdir)
        began_from = identity.of_initial(config, workdir)
    else:
        network = initial.read(config, workdir)
        began_from = identity.of_networks([network] if network else [])
        if network is not None:
            for line in weights.other_input(network, config.view.fit, source.bit_depth):
                say(line)
            network = initial.reshaped(config, network)
        else:
            config = before_reshaping(config)
        student = weights.architecture_of(config, data.class_names, network, source.bit_depth)
        if network is not None:
            weights.merge(student.abstract_variables(), network, config.init_fresh)  # raises if they do not fit
    return Run(
        computation=build(config, student, mesh, _announced_teacher(config, workdir, mesh)),
        student=student,
        workdir=workdir,
        checked_teacher=None,
        initial=network,
        train_data=TrainPipeline(config, data.source, jax.process_index(), jax.process_count(), data.labels_for),
        eval_data=data.evaluation,
        identity={**data.identity, "initial": began_from, "teacher": None},
    )


def _announced_teacher(config: Config, workdir: pathlib.Path, mesh: Mesh) -> Teacher | None:
    """Returns the teacher's shapes for an objective with variables: its errors show before the teacher is trained."""
    if not objectives.build(config.objective).has_variables:
        return None
    try:
        return teachers.abstract(teachers.announced(config, workdir), config, mesh)
    except ConfigError:  # the teacher is not here, and its name does not tell its shapes
        return None


def before_reshaping(config: Config) -> Config:
    """Returns the config, without `compress` if the kernels are not known until an earlier network is trained."""
    return dataclasses.replace(config, compress=CompressConfig()) if initial.reshapes(config) else config


def with_teacher(run: Run) -> Run:
    """Adds the teacher to a run, after a check that it resumes with the teacher and the data that it began with."""
    networks = teachers.read(run.config, run.workdir)
    of_config, of_teacher = identity.of_config(run.config, run.workdir), identity.of_networks(networks)
    hashes = {**run.identity, "config": of_config, "teacher": of_teacher}
    identity.check(run.config, run.workdir, hashes)
    class_names = run.student.card.class_names or teachers.class_names(networks, run.config.num_classes)
    checked = check.prepare(
        networks,
        run.config,
        run.workdir,
        run.mesh,
        run.train_data,
        next(iter(run.eval_data.values()), None),
        class_names,
    )
    student = run.student.with_card(dataclasses.replace(run.student.card, class_names=class_names))
    computation = run.computation
    if objectives.build(run.config.objective).has_variables:
        computation = build(run.config, run.student, run.mesh, checked.teacher if checked else None)
    return dataclasses.replace(run, computation=computation, identity=hashes, checked_teacher=checked, student=student)

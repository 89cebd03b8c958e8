"""Sets a run up before its first step: builds networks and steps, freezes and checks the teacher."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import CompressConfig, Config
from big_distill.data.pipeline import EvalPipeline, TrainPipeline
from big_distill.errors import ConfigError, DataError
from big_distill.parallel import sharding
from big_distill.run_dir.checkpoints import saved_steps
from big_distill.state import Resident, Teacher, TrainState
from big_distill.step import objectives
from big_distill.teacher import check
from big_distill.terminal import say
from big_distill.training import identity, initial
from big_distill.training.computation import Computation, build
from big_distill.training.data import Data
from big_distill.training.evaluation import evaluate
from big_distill.training.identity import Identities

Scores = dict[str, dict[str, float]]
"""split -> metric -> value"""


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

"""Measures train steps: the same function-matching step in different ways. A way is one function in WAYS."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import measure

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import Config
from big_distill.config.template import teacher_of, template
from big_distill.data.pipeline import TrainPipeline
from big_distill.data.sources import open_source
from big_distill.models import layers
from big_distill.parallel import sharding
from big_distill.resolve import resolve
from big_distill.training import setup

CNN = {"name": "cnn", "features": (256, 512)}
SMALL_CNN = {"name": "cnn", "features": (16, 32)}


@dataclasses.dataclass(frozen=True)
class Case:
    """Describes a teacher and its student, as fields of `config.student`, and their images."""

    teacher: dict[str, Any]
    student: dict[str, Any]
    image_size: int
    batch_size: int
    channels: int = 3
    num_classes: int = 100

    def __str__(self) -> str:
        return f"{self.image_size} px, batch {self.batch_size}"

    def networks(self) -> str:
        """Describes the whole case in a line."""

        def network(fields: dict[str, Any]) -> str:
            return " ".join(str(x) if name == "name" else f"{name}={x}" for name, x in fields.items())

        return f"{network(self.teacher)} -> {network(self.student)}; {self}"


CASES = {
    "a": Case(CNN, SMALL_CNN, 28, 256, 1, 10),
    "b": Case({"name": "bit", "depth": 50}, {"name": "bit", "blocks": (1, 1, 1, 1), "width": 0.5}, 64, 64),
    "c": Case({"name": "bit", "depth": 101}, {"name": "bit", "depth": 50}, 64, 32),
    "digits": Case({"name": "cnn", "features": (64, 128)}, SMALL_CNN, 8, 128, 1, 10),
}
STEPS_PER_DISPATCH = 25
TINY = Case({"name": "cnn", "features": (8, 16)}, {"name": "cnn", "features": (4, 8)}, 8, 8, 1, 10)


class Job:
    """Builds a case: all that a run has before its first step, with random weights and images."""

    def __init__(self, case: Case):
        config = template()
        config.num_classes, config.batch_size, config.total_steps = case.num_classes, case.batch_size, 1_000_000
        config.source.name, config.source.num_train_examples = "random", 64
        config.view.image_size, config.view.channels = case.image_size, case.channels
        config.optimizer.warmup_steps = 10
        nested = teacher_of(config)
        nested.student.update(case.teacher)
        nested.objective.name = "cross_entropy"
        config.student.update(case.student)
        config.teacher.config = nested
        config.view.regime = config.objective.name = "function_matching"
        self.config: Config = resolve(config, 1, jax.default_backend())
        self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
        architecture = weights.architecture_of(self.config.teacher.config, (), None)
        rng, image = jax.random.key(0), jnp.zeros(architecture.input_shape)
        variables = jax.jit(architecture.build("float32").init)(rng, image)
        self.teacher = weights.Network(architecture, variables)

    def build(self) -> setup.Computation:
        """Builds the steps, not yet traced: every way has its own."""
        return setup.build(self.config, weights.architecture_of(self.config, (), None), self.mesh)

    def folded(self) -> Any:
        """Returns the teacher in the form that runs use."""
        networks = (self.teacher,)
        return teachers.freeze(networks, self.config, self.mesh, ())

    def unfolded(self) -> Any:
        """Returns the teacher that standardises its kernels in every step."""
        return teachers.plain(self.teacher, self.config, self.mesh, ())

    def pipeline(self, steps_per_dispatch: int = 1, resident: bool = False) -> TrainPipeline:
        """Makes batches of random images, sent as the arguments say."""
        view, source = self.config.view, dataclasses.replace(self.config.source, resident=resident)
        shape = {"image_size": view.image_size, "channels": view.channels, "num_classes": self.config.num_classes}
        config = dataclasses.replace(self.config, source=source, steps_per_dispatch=steps_per_dispatch)
        return TrainPipeline(config, open_source(source, source.train, **shape))


def one_batch(job: Job, teacher: Any) -> measure.Way:
    """Runs one step a call on a batch that is already on the device."""
    computation = job.build()
    state = computation.begin(computation.init(jax.random.key(0)))
    chunk = sharding.to_devices(job.mesh, next(job.pipeline().chunks(0)), axis=1)

    def way() -> int:
        nonlocal state
        in_order = {**chunk, "step": state.step[None]}
        (state,), (metrics,) = computation.train_chunk((state,), teacher, None, in_order)
        assert all(jax.block_until_ready(metrics)["applied"])
        return job.config.batch_size

    return way


def plain(job: Job) -> measure.Way:
    """Runs one step a call on a batch that is already on the device."""
    return one_batch(job, job.folded())


def uncured(job: Job) -> measure.Way:
    """Runs 'plain' with the convolutions and pools of other devices, in place of the CPU's own forms."""
    way = one_batch(job, job.folded())

    def plain_forms() -> int:
        with default_forms():  # matters only while the first call is traced
            return way()

    return plain_forms


def unfolded(job: Job) -> measure.Way:
    """Runs 'plain' with a teacher that standardises its kernels in every step."""
    return one_batch(job, job.unfolded())


def fed(job: Job, **how: Any) -> measure.Way:
    """Steps as a run does: the pipeline makes each batch and sends it to the device; steps are dispatched ahead."""
    computation, teacher, data = job.build(), job.folded(), job.pipeline(**how)
    state = computation.begin(computation.init(jax.random.key(0)))
    resident, chunks = sharding.put(data.resident(), sharding.replicated(job.mesh)), data.chunks(0)
    num_dispatches = 5 if "steps_per_dispatch" not in how else 1

    def way() -> int:
        nonlocal state
        applied: list[bool] = []
        for chunk in itertools.islice(chunks, num_dispatches):
            on_devices = sharding.to_devices(job.mesh, chunk, axis=1)
            (state,), (metrics,) = computation.train_chunk((state,), teacher, resident, on_devices)
            applied.extend(metrics["applied"])
        assert all(jax.device_get(applied))
        return len(applied) * job.config.batch_size

    return way


def scanned(job: Job, **how: Any) -> measure.Way:
    """Runs 'host' with several steps a call."""
    return fed(job, steps_per_dispatch=STEPS_PER_DISPATCH, **how)


def resident(job: Job) -> measure.Way:
    """Runs one step a call; the data set is on the device and cropped there."""
    return fed(job, resident=True)


def resident_scanned(job: Job) -> measure.Way:
    """Runs 'resident' with several steps a call."""
    return scanned(job, resident=True)


WAYS: dict[str, Callable[[Job], measure.Way]] = {
    "uncured": uncured,
    "plain": plain,
    "unfolded": unfolded,
    "host": fed,
    "scanned": scanned,
    "resident": resident,
    "resident_scanned": resident_scanned,
}


def rows(effort: measure.Effort) -> Iterator[measure.Row]:
    for name, case in {"tiny": TINY}.items() if effort.tiny else CASES.items():
        if effort.tiny or name in effort.cases:
            job = Job(case)
            yield from measure.in_turns("step", f"{name}: {case}", {way: WAYS[way](job) for way in effort.ways}, effort)


@contextlib.contextmanager
def default_forms() -> Iterator[None]:
    """Makes traces within it take the plain operations of `layers`, on the CPU too."""

    class Lax:
        def __getattr__(self, name: str) -> Any:
            return getattr(jax.lax, name)

        @staticmethod
        def platform_dependent(*args: Any, default: Callable[..., Any], **_: Any) -> Any:
            return default(*args)

    layers.lax = Lax()
    try:
        yield
    finally:
        layers.lax = jax.lax

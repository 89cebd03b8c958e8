"""Evaluates files in place of the student that a run trained."""

from __future__ import annotations

import functools
import operator
import pathlib
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.data.pipeline import EvalPipeline
from big_distill.errors import RunError
from big_distill.export import predictor
from big_distill.export.predictor import Predictor
from big_distill.parallel import sharding
from big_distill.run_dir.layout import read_config
from big_distill.state import Teacher
from big_distill.step import scoring, steps
from big_distill.step.views import to_unit
from big_distill.terminal import say
from big_distill.training.evaluation import NO_FIELDS, mesh_for, open_eval, remarks, with_data


def evaluate_file(
    file: pathlib.Path, workdir: pathlib.Path, split: str, source: Mapping[str, str | None] = NO_FIELDS
) -> dict[str, float]:
    """Computes the metrics of a file, as `add_up_file` does."""
    return scoring.metrics_of(add_up_file(file, workdir, split, source)[1])


def add_up_file(
    file: pathlib.Path, workdir: pathlib.Path, split: str, source: Mapping[str, str | None] = NO_FIELDS
) -> tuple[str, scoring.Totals]:
    """Adds up the sums of a file that `predictor.load` takes, in place of a run's student.

    `training.evaluation.add_up_run` does the same for the student.

    Raises:
      RunError: no run, or the file is not of this run.
    """
    config = with_data(read_config(workdir), source)
    mesh, student = mesh_for(config), weights.read_architecture(workdir)
    data = open_eval(config, split, student.bit_depth, student.card.class_names)
    for line in remarks(config, data.source):
        say(line)
    teacher = teachers.load(config, workdir, mesh, student.card.class_names)
    network = predictor.load(file, student)
    for name in ("num_classes", "channels", "fit", "bit_depth", "card.image_size", "card.class_names"):
        value, expected = (operator.attrgetter(name)(architecture) for architecture in (network.architecture, student))
        if value != expected:
            field = name.removeprefix("card.")
            raise RunError(f"{file} is not of this run: its {field} is {value}, the run's is {expected}")
    return data.source.name, add_up_predictors([network], teacher, data, mesh, confusion=True)[0]


def evaluate_predictors(
    predictors: Sequence[Predictor], teacher: Teacher | None, data: EvalPipeline, mesh: Mesh
) -> list[dict[str, float]]:
    """Computes the metrics of several networks, as `add_up_predictors` does."""
    return [scoring.metrics_of(totals) for totals in add_up_predictors(predictors, teacher, data, mesh)]


def add_up_predictors(
    predictors: Sequence[Predictor], teacher: Teacher | None, data: EvalPipeline, mesh: Mesh, confusion: bool = False
) -> list[scoring.Totals]:
    """Adds up the sums of several networks that do not run on the mesh; asks the teacher once for all.

    Each process computes the logits of its own examples.
    """
    ask = jax.jit(lambda teacher, pixels: steps.teacher_logits(teacher, to_unit(pixels)))
    score = jax.jit(functools.partial(scoring.score, confusion=confusion), out_shardings=sharding.replicated(mesh))
    totals: list[scoring.Totals] = [{} for _ in predictors]
    for batch in data:
        on_mesh = sharding.to_devices(mesh, batch)
        targets = ask(teacher, on_mesh["pixels"])
        for index, network in enumerate(predictors):
            logits = sharding.to_devices(mesh, {"logits": network.classify(batch["pixels"])})["logits"]
            sums = score(logits, targets, on_mesh.get("label"), on_mesh["mask"])
            totals[index] = scoring.add_up([totals[index], sums])
    return totals

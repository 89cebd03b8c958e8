"""Evaluates files: a packed student in place of the one that a run trained."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.data.pipeline import EvalPipeline
from big_distill.errors import RunError
from big_distill.export import executable
from big_distill.export.executable import Executable
from big_distill.parallel import sharding
from big_distill.run_dir.layout import read_config
from big_distill.state import Teacher
from big_distill.step import scoring, steps
from big_distill.step.views import to_unit
from big_distill.training.evaluation import mesh_for, open_eval, with_eval_data


def evaluate_file(
    file: pathlib.Path, workdir: pathlib.Path, split: str, data_dir: str | None = None
) -> dict[str, float]:
    """Metrics of a file of weights, or of an exported one, in place of a run's student.

    Args:
      file: any that `executable.read` takes.
      workdir: the run directory, whose data and teacher the file is measured against.
      split: in TFDS syntax.
      data_dir: where TFDS sets are, if not where the run had them.

    Raises:
      RunError: no run, or the file is not of this run.
    """
    config = with_eval_data(read_config(workdir), data_dir)
    mesh = mesh_for(config)
    data = open_eval(config, split)
    ours = weights.read_architecture(workdir)
    teacher = teachers.load(config, workdir, mesh, ours.card.class_names)
    found = executable.read(file)
    _check_of_run(file, found.architecture, ours)
    return evaluate_executables([found], teacher, data, mesh)[0]


def evaluate_executables(
    executables: Sequence[Executable], teacher: Teacher | None, data: EvalPipeline, mesh: Mesh
) -> list[dict[str, float]]:
    """`evaluate` of what does not run on the mesh: each process computes the logits of its own examples.

    Returns:
      The metrics of each; the teacher is asked once for all of them.
    """

    def expected(teacher: Teacher | None, pixels: jax.Array) -> jax.Array | None:
        return steps.teacher_logits(teacher, to_unit(pixels))

    ask, score = jax.jit(expected), jax.jit(scoring.score, out_shardings=sharding.replicated(mesh))
    sums: list[list[scoring.Sums]] = [[] for _ in executables]
    for batch in data:
        on_mesh = sharding.to_devices(mesh, batch)
        wanted = ask(teacher, on_mesh["pixels"])
        for one, own in zip(executables, sums, strict=True):
            logits = sharding.to_devices(mesh, {"logits": one.classify(batch["pixels"])})["logits"]
            own.append(score(logits, wanted, on_mesh.get("label"), on_mesh["mask"]))
    return [scoring.summarize(own) for own in sums]


def _check_of_run(file: pathlib.Path, found: weights.Architecture, ours: weights.Architecture) -> None:
    for name, theirs, wanted in (
        ("num_classes", found.num_classes, ours.num_classes),
        ("channels", found.channels, ours.channels),
        ("image_size", found.card.image_size, ours.card.image_size),
        ("class_names", found.card.class_names, ours.card.class_names),
    ):
        if theirs != wanted:
            raise RunError(f"{file} is not of this run: its {name} is {theirs}, the run's {wanted}")

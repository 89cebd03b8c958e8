"""Finds out what a run directory holds, what of it verifies, and what the same command would do with it."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from big_distill import weights
from big_distill.config import Config
from big_distill.errors import RunError
from big_distill.export.formats import EXECUTABLE_SUFFIXES, read_card
from big_distill.reporting.records import attempt, check_weights
from big_distill.run_dir import checkpoints, layout, lock
from big_distill.run_dir.metrics import METRICS_FILE, read_metrics
from big_distill.weights import container

_FORMS = {
    layout.PREFLIGHT_FILE: {"key": str, "teacher": str, "teachers": [dict]},
    layout.ACTIVATION_RANGES_FILE: {"teacher": str, "ranges": [dict]},
    layout.RESUMES_FILE: [int],
    layout.ENVIRONMENT_FILE: layout.SESSIONS,
    layout.SENSITIVITY_FILE: dict,
    layout.PACK_FILE: [{"path": str}],
}
_NEEDED = (layout.ARCHITECTURE_FILE, METRICS_FILE, *list(_FORMS)[:4])  # a resume reads these


@dataclasses.dataclass(frozen=True)
class Finding:
    """Describes a file or a checkpoint.

    name: its path within the run directory.
    detail: a line on what it is, or on what is wrong with it.
    verified: True if it can be read and matches its checksum, if it has one.
    """

    name: str
    detail: str
    verified: bool = True


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Describes a run directory.

    status: that of `lock.status`.
    step: the step that a resume would go on from, 0 for the beginning.
    total_steps: the length of the run, None if its config is not there.
    findings: all that it holds.
    outlook: the end of the sentence 'The same command ...'.
    inner: the diagnoses of its teacher and its first stage.
    """

    workdir: pathlib.Path
    status: str
    step: int
    total_steps: int | None
    findings: tuple[Finding, ...]
    outlook: str
    inner: tuple[Diagnosis, ...]

    @property
    def verified(self) -> bool:
        """Returns True if all findings are verified, its own and those of the runs inside it."""
        return all(finding.verified for finding in self.findings) and all(run.verified for run in self.inner)


def examine(workdir: pathlib.Path) -> Diagnosis:
    """Examines a run directory. Changes nothing in it and opens no data. Raises RunError unless it is one."""
    known = (layout.CONFIG_FILE, layout.CHECKPOINTS_DIR, layout.TEACHER_DIR, layout.INIT_DIR)
    if not workdir.is_dir() or not any((workdir / name).exists() for name in known):
        raise RunError(f"{workdir} is not a run directory: it has none of {', '.join(known)}")
    directories = (workdir / name for name in (layout.TEACHER_DIR, layout.INIT_DIR))
    inner = tuple(examine(directory) for directory in directories if directory.is_dir())
    findings, values = [], {}
    for name, reader, describe in (
        (layout.CONFIG_FILE, layout.read_config, lambda _: f"fingerprint {layout.read_fingerprint(workdir)}"),
        (layout.ARCHITECTURE_FILE, weights.read_architecture, lambda student: student.model.name),
        (METRICS_FILE, read_metrics, _metrics_in_words),
        (layout.SUMMARY_FILE, layout.read_summary, _summary_in_words),
    ):
        if (workdir / name).exists():
            values[name], damage = attempt(workdir / name, functools.partial(reader, workdir))
            findings.append(Finding(name, damage or describe(values[name]), verified=damage is None))
    holder = lock.holder(workdir)
    saved = checkpoints.verify(workdir)
    if holder and any(saved.values()):
        time.sleep(1)  # a live run keeps only its newest checkpoints: perhaps it was removing the damaged ones
        saved = checkpoints.verify(workdir)
    findings += _checkpoint_findings(workdir, saved, holder)
    findings += _other_findings(workdir, values.get(layout.SUMMARY_FILE))
    config: Config | None = values.get(layout.CONFIG_FILE)
    finished = values.get(layout.SUMMARY_FILE) is not None
    damaged = {finding.name: finding.detail for finding in findings if not finding.verified}
    step = max((step for step, damage in saved.items() if damage is None), default=0)
    if holder:
        outlook = f"is refused: {holder} trains here"
    elif refusal := _refusal(workdir, saved, damaged):
        outlook = f"is refused: {refusal}"
    elif finished:
        outlook = "reads the summary: the run is finished"
    elif saved:
        aside = [f"{step:,}" for step, damage in saved.items() if damage]
        moves = f"moves step {', '.join(aside)} to {layout.DAMAGED_DIR}/ and " if aside else ""
        outlook = f"{moves}goes on at step {step:,}" + (f" of {config.total_steps:,}" if config else "")
    else:
        unfinished = next((run for run in inner if run.status != "finished"), None)
        first = f", after {unfinished.workdir.name}/, which {unfinished.outlook}" if unfinished else ""
        outlook = f"begins at step 0{first}"
    return Diagnosis(
        workdir=workdir,
        status=lock.status(held=bool(holder), finished=finished, begun=bool(saved)),
        step=step,
        total_steps=config.total_steps if config else None,
        findings=tuple(findings),
        outlook=outlook,
        inner=inner,
    )


def _refusal(workdir: pathlib.Path, saved: dict[int, str | None], damaged: dict[str, str]) -> str | None:
    """Says why a resume would not begin, None if it would. Looks at things in the order in which a resume does."""
    begun = bool(saved) or (workdir / layout.SUMMARY_FILE).exists()
    if begun and not (workdir / layout.CONFIG_FILE).exists():
        return f"it has no {layout.CONFIG_FILE}"
    for name in (layout.CONFIG_FILE, layout.SUMMARY_FILE):
        if begun and name in damaged:
            return damaged[name]
    if saved and all(saved.values()):
        return "every checkpoint is damaged"
    return next((damaged[name] for name in _NEEDED if saved and name in damaged), None)


def _checkpoint_findings(workdir: pathlib.Path, saved: dict[int, str | None], holder: str | None) -> Iterator[Finding]:
    directory = workdir / layout.CHECKPOINTS_DIR
    for step, damage in saved.items():
        yield Finding(f"{directory.name}/{step}", damage or "checksums right", damage is None)
    unfinished = "a save under way" if holder else "a save that was never finished; the next session removes it"
    for path in sorted(directory.glob("*.orbax-checkpoint-tmp*")):
        yield Finding(f"{directory.name}/{path.name}", unfinished)
    for path in sorted((workdir / layout.DAMAGED_DIR).glob("*")):
        yield Finding(f"{layout.DAMAGED_DIR}/{path.name}", "set aside by an earlier session; nothing reads it")


def _other_findings(workdir: pathlib.Path, summary: Any) -> Iterator[Finding]:
    def loaded(path: pathlib.Path) -> str:
        network = weights.load(path)
        if path.name == layout.WEIGHTS_FILE and summary:
            check_weights(workdir, network, summary)
            return "the weights of the summary's hash"
        return f"{weights.num_params(network.variables['params']):,} parameters"

    def checked(path: pathlib.Path) -> str:
        read_card(path)
        return "checksum right"

    def readable(path: pathlib.Path) -> str:
        layout.read_json(path, _FORMS[path.name])
        return "readable"

    readers = [(workdir / name, readable) for name in _FORMS if (workdir / name).exists()]
    for suffix in (".npz", ".safetensors", container.SUFFIX, *EXECUTABLE_SUFFIXES):
        reader = checked if suffix in EXECUTABLE_SUFFIXES else loaded
        readers += [(path, reader) for path in sorted(workdir.glob(f"*{suffix}"))]
    for path, reader in readers:
        detail, damage = attempt(path, functools.partial(reader, path))
        yield Finding(path.name, damage or detail, verified=damage is None)
    for path in sorted(workdir.glob("nonfinite_step_*.json")):
        yield Finding(path.name, "examples of a step whose loss or gradient was not finite")


def _metrics_in_words(lines: list[dict[str, float]]) -> str:
    return f"{len(lines):,} lines" + (f", the last of step {lines[-1]['step']:,}" if lines else "")


def _summary_in_words(summary: dict[str, Any] | None) -> str:
    if summary is None:
        return f"the finished run lost its {layout.WEIGHTS_FILE}: it is made again from the last checkpoint"
    accuracy = summary["student"]["accuracy"]
    return f"{summary['steps']:,} steps" + (f", accuracy {100 * accuracy:.2f} %" if accuracy is not None else "")

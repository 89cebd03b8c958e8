"""Knows a run by what its data and networks are, wherever they lie: hashes of them, which a resume compares.

A checkpoint's meta holds the hashes by part: `data` (training), `evaluation`, `left_out` (duplicates, if any were),
`teacher`, `initial` (the network that the run started from), and `config` (the fingerprint that the run began with).
Runs of versions before 0.2.0 have no `evaluation` and no `initial`: if those lie elsewhere, they are refused.
"""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Sequence

import numpy as np

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import Config, differences, fingerprint
from big_distill.data import Source
from big_distill.errors import BigDistillError, RunError
from big_distill.parallel.processes import on_first_process
from big_distill.run_dir import layout
from big_distill.run_dir.checkpoints import read_meta, saved_steps
from big_distill.terminal import say
from big_distill.training import initial
from big_distill.training.evaluation import open_split, training_source


class AnotherError(RunError):
    """Says that a run directory holds a run on other data or networks."""


Identity = dict[str, str]
"""Holds the hashes `sha256` and `sample` that a resume compares, and `name`, which says what was hashed."""
Identities = dict[str, Identity | None]
"""Maps a part of a run to what it is; None if the run has no such part."""

_PART_AT = {"source.path": "data", "eval_source.path": "evaluation", "teacher.path": "teacher", "init_from": "initial"}
_IN_WORDS = {"initial": "initial network", "evaluation": "evaluation set", "left_out": "list of duplicates"}
_NUM_SAMPLES = 64


def of_data(source: Source, evaluation: Sequence[Source]) -> Identities:
    """Hashes the training split, and the evaluation splits together.

    A source's fingerprint may be of names and sizes alone, so that a million files are not read. Up to 64 examples of
    each split, evenly spaced, are therefore read and hashed as well.
    """
    return {"data": _of_splits([source]), "evaluation": _of_splits(evaluation) if evaluation else None}


def _of_splits(sources: Sequence[Source]) -> Identity:
    sample = hashlib.sha256()
    for source in sources:
        ids = np.unique(np.linspace(0, source.num_examples - 1, _NUM_SAMPLES).astype(np.int64))
        for image, label in source.read(ids):
            sample.update(image if isinstance(image, bytes) else repr(image.shape).encode() + image.tobytes())
            sample.update(b"%d" % label)
    prints = [source.fingerprint for source in sources]
    return {
        "name": " and ".join(f"{source.name}, {source.num_examples:,} examples" for source in sources),
        "sha256": prints[0] if len(prints) == 1 else hashlib.sha256(repr(prints).encode()).hexdigest(),
        "sample": sample.hexdigest(),
    }


def of_networks(networks: Sequence[weights.Network]) -> Identity | None:
    """Hashes the networks of a teacher, or the one that a run starts from; returns None for none."""
    if not networks:
        return None
    return {"name": ", ".join(network.source for network in networks), "sha256": teachers.identity(networks)}


def of_config(config: Config, workdir: pathlib.Path) -> Identity:
    """Returns the fingerprint that a run began with, or for a new run the config's."""
    begun = layout.read_fingerprint(workdir) if saved_steps(workdir) else fingerprint(config)
    return {"name": "a checkpoint of another run", "sha256": begun}


def saved(workdir: pathlib.Path) -> Identities:
    """Reads the identities of a run from its newest checkpoint; {} before there is one."""
    steps = saved_steps(workdir)
    return read_meta(workdir, steps[-1])["identity"] if steps else {}


def of_initial(config: Config, workdir: pathlib.Path) -> Identity | None:
    """Hashes the network that a run began from. Reads it only if it lies elsewhere now, because it may be gone."""
    if layout.read_config(workdir).init_from == config.init_from:
        return saved(workdir).get("initial")
    _check_known(config, workdir)
    network = initial.read(config, workdir)
    return of_networks([network] if network else [])


def check(config: Config, workdir: pathlib.Path, now: Identities) -> None:
    """Checks that a run goes on with the data and the networks that it began with. A new run begins with any.

    Raises:
      RunError: one of them is another, or lies elsewhere and its hash was not saved.
    """
    for part, before in saved(workdir).items():
        if not _same(before, now.get(part)):
            raise AnotherError(
                f"{workdir} was trained with another {_IN_WORDS.get(part, part)} ({_described(before)}; now "
                f"{_described(now.get(part))}): choose another --workdir"
            )
    if saved_steps(workdir):
        _check_known(config, workdir)
        before_it, first = layout.read_config(workdir).init_config, config.init_config
        if before_it and first and differences(before_it, first, "place"):
            check_moved(first, workdir / layout.INIT_DIR)


def check_moved(config: Config, workdir: pathlib.Path) -> None:
    """Checks a run on which nothing is trained now, as `check` does, if its data or networks lie elsewhere.

    Raises:
      RunError: as `check`.
      DataError: the data are not there.
    """
    if not differences(layout.read_config(workdir), config, "place"):
        return
    _check_known(config, workdir)
    on = config.evaluated_on
    bit_depth = weights.read_architecture(workdir).bit_depth
    train = open_split(config, training_source(config), config.source.train, bit_depth)
    now = of_data(train, [open_split(config, on, split, bit_depth) for split in (on.validation, on.test) if split])
    now |= {"teacher": of_networks(teachers.read(config, workdir)), "initial": of_initial(config, workdir)}
    now["left_out"] = saved(workdir).get("left_out")  # it follows from the data
    check(config, workdir, now | {"config": of_config(config, workdir)})
    if config.teacher.config:
        check_moved(config.teacher.config, workdir / layout.TEACHER_DIR)


def find(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """Finds the directory of a run among those that the same config file began, wherever its data lay then.

    Args:
      config: the resolved config.
      workdir: its default directory, NAME-FINGERPRINT. If a run has begun there, it is the one.

    Returns:
      The directory of the run with the same maths and the same content that has come farthest, or else `workdir`.
    """

    def farthest() -> str:
        if saved_steps(workdir):
            return str(workdir)
        others = workdir.parent.glob(f"{workdir.name.rpartition('-')[0]}-*")
        found = [other for other in sorted(others) if saved_steps(other) and _is(config, other)]
        return str(max(found, key=lambda other: saved_steps(other)[-1], default=workdir))

    return pathlib.Path(on_first_process(farthest))


def _is(config: Config, workdir: pathlib.Path) -> bool:
    try:
        if differences(layout.read_config(workdir), config, "maths"):
            return False
        check_moved(config, workdir)
    except AnotherError:
        return False
    except BigDistillError as error:
        say(f"{workdir} is not taken for this run, because it cannot be checked: {error}")
        return False
    return True


def _check_known(config: Config, workdir: pathlib.Path) -> None:
    """Raises RunError if data or networks lie elsewhere, and no hash says what they were."""
    moved, before = differences(layout.read_config(workdir), config, "place"), saved(workdir)
    lost = [field for field, part in _PART_AT.items() if part not in before]
    unknown = [line for line in moved if any(line.startswith(f"config.{field}: ") for field in lost)]
    if unknown:
        raise AnotherError(
            f"{workdir} holds a run with another config ({'; '.join(unknown)}), and does not say what lay there: "
            "choose another --workdir"
        )


def _same(before: Identity | None, now: Identity | None) -> bool:
    """Compares two identities by all hashes that the former one has."""
    if before is None or now is None:
        return before is now
    return all(before[key] == now.get(key) for key in before if key != "name")


def _described(identity: Identity | None) -> str:
    return f"{identity['name']}, hash {identity['sha256'][:12]}" if identity else "none"

"""Opens the data of a run, says what is known about them, and leaves out duplicates if asked."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from big_distill.config import Config
from big_distill.data import Source, duplicates
from big_distill.data.pipeline import EvalPipeline
from big_distill.data.reading import median_side
from big_distill.data.sources import check_no_class_is_empty, check_source, class_names_of
from big_distill.errors import ConfigError, DataError
from big_distill.files import atomic
from big_distill.parallel import processes
from big_distill.run_dir.checkpoints import saved_steps
from big_distill.run_dir.layout import DUPLICATES_FILE
from big_distill.step import objectives
from big_distill.terminal import say, say_once
from big_distill.training import identity
from big_distill.training.evaluation import open_eval, open_split, remarks, training_source
from big_distill.training.identity import Identities


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

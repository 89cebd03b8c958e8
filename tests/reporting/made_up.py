"""Makes records of finished runs that nobody trained."""

import dataclasses
import pathlib

from big_distill.config import Config, ObjectiveConfig, SourceConfig, TeacherConfig, ViewConfig
from big_distill.reporting.records import Record

CONFIG = Config(
    num_classes=10, batch_size=100, total_steps=100, total_epochs=10.0, dtype="float32",
    source=SourceConfig(name="digits", num_train_examples=1000),
    view=ViewConfig(image_size=8, mixup=0.0),
)  # fmt: skip


def record(accuracy, agreement=0.5, name="run", **changes):
    config = dataclasses.replace(CONFIG, **changes)
    summary = {"student": {"accuracy": accuracy, "num_params": 1}, "teacher": None, "agreement": agreement}
    return Record(pathlib.Path("runs") / name, "finished", config=config, summary=summary)


def patient(regime, epochs, seed, accuracy):
    view = dataclasses.replace(CONFIG.view, regime=regime, mixup=float(regime == "function_matching"))
    changes = {"total_epochs": float(epochs), "total_steps": 10 * epochs, "seed": seed, "view": view}
    return record(accuracy, name=f"{regime}-{epochs}-{seed}", **changes)


def taught(path, regime="consistent", **objective):
    teacher = TeacherConfig(path=path and f"/a/long/way/to/the/run/directory/of/{path}")
    return {"teacher": teacher, "view": ViewConfig(8, regime=regime), "objective": ObjectiveConfig(**objective)}

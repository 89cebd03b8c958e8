"""Checks that the code in README works as it is written there."""

import pathlib
import re
import sys
import textwrap

import numpy as np
import pytest

from big_distill.export.packing import pack
from big_distill.resolve import resolve
from big_distill.run_dir.metrics import read_metrics
from big_distill.training.loop import train_and_evaluate

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
_FILE = re.compile(r"^    # (my_\w+)\.py, for .*\n((?:(?!    # my_)    .*\n|\n(?=    ))+)", re.MULTILINE)
FILES = dict(_FILE.findall(README))


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """Writes the files of README's section on code of your own where Python finds them."""
    for name, text in FILES.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def test_there_is_code_for_each_field():
    assert set(FILES) == {"my_losses", "my_data", "my_nets", "my_hints"}
    for field in ("objective", "student", "source"):
        assert re.search(rf"--config\.{field}\.name=my_\w+:\w+", README)


@pytest.mark.parametrize("objective", ["my_losses:huber", "my_hints:fitnets"])
def test_own_objectives(distilled, own_code, one_device, tmp_path, objective):
    distilled.objective.name = objective
    train_and_evaluate(resolve(distilled, 1, "cpu"), tmp_path / "run")
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert len(losses) == 6 and np.isfinite(losses).all()


def test_own_data_and_network(tiny, own_code, one_device, tmp_path):
    tiny.source.name, tiny.source.num_train_examples, tiny.num_classes = "my_data:load", 60, 3
    tiny.student.name, tiny.student.features = "my_nets:perceptron", ()
    summary = train_and_evaluate(resolve(tiny, 1, "cpu"), tmp_path / "run")
    assert summary["student"]["num_params"] == 64 * 16 + 16 + 16 * 3 + 3
    (row,) = pack(tmp_path / "run", ["container"], "final", "validation")
    assert row["accuracy"] == summary["student"]["accuracy"]

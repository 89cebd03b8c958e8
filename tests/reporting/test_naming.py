"""Checks the names of runs, and their order."""

import pathlib

from made_up import patient, record, taught

from big_distill.reporting.naming import named
from big_distill.reporting.records import Record
from big_distill.reporting.sweep import sweep


def names(records):
    """Lists the names in the order of the records."""
    told = [(id(own), name) for name, own in named(records, sweep(records))]
    return [dict(told)[id(own)] for own in records]


def test_the_fields_that_set_runs_apart():
    """Runs are named by these fields, and ordered by line, then along the axis, seeds last."""
    runs = [patient("fixed", 100, 0, 0.8), patient("consistent", 10, 0, 0.7)]
    runs += [patient("fixed", 10, seed, 0.5) for seed in (1, 0)]
    assert [name for name, _ in named(runs, sweep(runs))] == [
        "total_epochs=10, view.regime=consistent, seed=0",
        "total_epochs=10, view.regime=fixed, seed=0",
        "total_epochs=10, view.regime=fixed, seed=1",
        "total_epochs=100, view.regime=fixed, seed=0",
    ]


def test_places():
    """If the fields do not tell runs apart, or are many, the shortest ends of their paths do."""
    same = [record(0.5, name="a/run"), record(0.5, name="b/run")]
    assert names(same) == ["a/run", "b/run"]
    assert names(same[:1]) == ["run"]
    assert names([*same, Record(pathlib.Path("none"), "empty")]) == [
        "a/run",
        "b/run",
        str(pathlib.Path.cwd().name) + "/none",
    ]
    assert names([record(0.5, name="x\ny")]) == ["x\\ny"]
    far = record(0.5, batch_size=1, seed=1, accumulate_steps=3, total_steps=7, init_from="x", name="c")
    assert names([same[0], far])[1] == "c"
    inner = [record(0.5, name="a/teacher"), record(0.5, name="b")]
    assert names(inner) == ["a/teacher", "b"]


def test_of_many_runs_names_leave_out_what_others_imply():
    """The runs are a sweep of regimes and durations, labels alone among them; names come in its order."""
    runs = [
        record(0.5, name=f"{path}{epochs}{seed}", total_epochs=epochs, total_steps=int(10 * epochs), seed=seed, **own)
        for epochs in (100.0, 10.0)
        for seed in (1, 0)
        for path, own in (
            ("a", taught("teacher", temperature=2.0)),
            ("b", taught("teacher", "function_matching", temperature=2.0)),
            ("c", taught(None, name="cross_entropy")),
        )
    ]
    told = [name for name, _ in named(runs, sweep(runs))]
    assert told[:2] == [
        f"total_epochs=10, objective.name=cross_entropy, view.regime=consistent, seed={seed}" for seed in (0, 1)
    ]
    assert len(set(told)) == 12 and all("path" not in name for name in told)

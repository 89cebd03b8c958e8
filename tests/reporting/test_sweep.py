"""Checks sweeps: their lines, the lines' names, and the points of their figure."""

import dataclasses
import pathlib
from unittest.mock import ANY

import pytest
from made_up import CONFIG, patient, record, taught

from big_distill.config import ObjectiveConfig, OptimizerConfig
from big_distill.reporting.fields import epochs_of
from big_distill.reporting.sweep import Point, Spread, sweep


def test_patience():
    """Regimes are lines over durations, seeds are averaged; mixup follows from the regime and is no field."""
    runs = [patient("fixed", 100, 0, 0.8), patient("fixed", 10, 0, 0.5), patient("fixed", 10, 1, 0.7)]
    runs += [patient("function_matching", epochs, 0, 0.9) for epochs in (10, 100)]
    found = sweep(runs)
    assert found.field == "total_epochs"
    assert list(found.lines) == ["view.regime=fixed", "view.regime=function_matching"]
    first, second = found.lines["view.regime=fixed"]
    assert first == Point(10.0, 2, Spread(2, pytest.approx(0.6), 0.5, 0.7), Spread(2, 0.5, 0.5, 0.5))
    assert second == Point(100.0, 1, Spread(1, 0.8, 0.8, 0.8), Spread(1, 0.5, 0.5, 0.5))


def test_a_grid_of_temperature_and_alpha():
    """The field with most values is the axis; the other makes the lines, in the order of numbers."""
    runs = [
        record(0.1 * t, objective=ObjectiveConfig(name="hinton", temperature=float(t), alpha=a))
        for a in (0.9, 0.5, 0.25)
        for t in (16, 1, 4, 2)
    ]
    found = sweep(runs)
    assert found.field == "objective.temperature"
    assert list(found.lines) == ["objective.alpha=0.25", "objective.alpha=0.5", "objective.alpha=0.9"]
    assert [point.x for point in found.lines["objective.alpha=0.5"]] == [1, 2, 4, 16]


def test_what_goes_with_the_duration_makes_no_lines():
    """The paper's variants have lower learning rates when they are longer; the sweep says so instead."""
    runs = [
        record(0.5, seed=seed, total_epochs=epochs, total_steps=int(10 * epochs), optimizer=OptimizerConfig(lr=lr))
        for epochs, lr in ((10.0, 0.01), (100.0, 0.003), (1000.0, 0.001))
        for seed in (0, 1)
    ]
    found = sweep(runs)
    assert (found.along, list(found.lines)) == (("optimizer.lr",), [""])
    assert [point.num_runs for point in found.lines[""]] == [2, 2, 2]
    crossed = [*runs, record(0.5, optimizer=OptimizerConfig(lr=1.0))]
    assert sweep(crossed).field == "optimizer.lr", "one length at two rates: the rate is no longer told by the length"


def crossed(*changes):
    """Makes runs of 10 and of 100 epochs with each of the changes."""
    return [
        record(0.5, total_epochs=epochs, total_steps=int(10 * epochs), **own)
        for epochs in (10.0, 100.0)
        for own in changes
    ]


def test_lines_are_named_in_few_words():
    """Long labels lose fields that the others imply, paths and numbers before words; the sweep lists these fields."""
    labels_alone = taught(None, name="cross_entropy")
    found = sweep(crossed(taught("a", "fixed", temperature=2.0), taught("a", temperature=2.0), labels_alone))
    assert list(found.lines) == [
        "objective.name=cross_entropy, view.regime=consistent",
        "objective.name=function_matching, view.regime=consistent",
        "objective.name=function_matching, view.regime=fixed",
    ]
    assert found.implied == ("teacher.path", "objective.temperature")
    longest = sweep(crossed(taught("a", temperature=1.0), taught("b", temperature=2.0)))
    assert list(longest.lines) == ["objective.temperature=1", "objective.temperature=2"]
    short = sweep(
        crossed({"objective": ObjectiveConfig(temperature=2.0)}, {"objective": ObjectiveConfig(name="hinton")})
    )
    assert "objective.name=function_matching, objective.temperature=2" in short.lines and short.implied == ()


def test_names_that_tell_lines_apart_stay_however_long():
    found = sweep(crossed(*(taught(path, regime) for path in "ab" for regime in ("fixed", "consistent"))))
    assert len(found.lines) == 4 and found.implied == ()
    assert {point.num_runs for points in found.lines.values() for point in points} == {1}
    close = [{"optimizer": OptimizerConfig(lr=lr)} for lr in (0.12345671, 0.12345672)]
    assert list(sweep(crossed(*close)).lines) == ["optimizer.lr=0.12345671", "optimizer.lr=0.12345672"]


def test_a_seed_counts_once():
    """A repeated seed counts once, and a run that measured nothing does not count."""
    runs = [patient("fixed", 10, 0, 0.5), patient("fixed", 10, 1, None), patient("fixed", 100, 0, 0.8)]
    again = dataclasses.replace(runs[0], workdir=pathlib.Path("runs/again"))
    found = sweep([*runs, again])
    assert found.repeated == ("runs/again",)
    first, _ = found.lines[""]
    assert first.accuracy == Spread(1, 0.5, 0.5, 0.5) and first.agreement.num_runs == first.num_runs == 2


def test_seeds_alone_are_averaged():
    """Seeds are averaged also if runs differ in words."""
    found = sweep([record(0.5 + 0.1 * seed, seed=seed) for seed in range(3)])
    assert (found.field, found.lines) == (None, {"": (Point(None, 3, Spread(3, pytest.approx(0.6), 0.5, 0.7), ANY),)})
    runs = [
        record(0.5, seed=seed, objective=ObjectiveConfig(name=name))
        for seed in (0, 1)
        for name in ("hinton", "mine:own")
    ]
    assert list(sweep(runs).lines) == ["objective.name=hinton", "objective.name=mine:own"]


def test_a_duration_that_joins_nothing_gives_way():
    runs = [record(0.5, objective=ObjectiveConfig("hinton", temperature=t)) for t in (1.0, 2.0, 4.0)]
    found = sweep([*runs, patient("consistent", 100, 0, 0.9)])
    assert found.field == "objective.temperature" and [len(points) for points in found.lines.values()] == [3, 1]


def test_what_makes_no_figure():
    names = [record(0.5, objective=ObjectiveConfig(name=name)) for name in ("hinton", "cross_entropy")]
    assert sweep(names) is None, "no number differs"
    both = [record(0.5), record(0.6, total_epochs=20.0, total_steps=200, objective=ObjectiveConfig(name="hinton"))]
    assert sweep(both) is None, "no line would have two points"
    unfinished = dataclasses.replace(record(0.5, total_epochs=20.0, total_steps=200), summary=None)
    assert sweep([record(0.5), unfinished]) is None


def test_epochs_are_those_that_were_run():
    assert epochs_of(CONFIG) == 10
    assert epochs_of(dataclasses.replace(CONFIG, total_steps=99)) == 10, "as it was rounded"
    assert epochs_of(dataclasses.replace(CONFIG, total_steps=50)) == 5, "total_steps won"

"""Checks that a network sees an image as it was trained to, wherever it runs: in its run, its evaluation, its files."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special
from PIL import Image
from tiers import cases

import big_distill
from big_distill import weights
from big_distill.config import BIT_DEPTH, FITS
from big_distill.errors import RunError
from big_distill.export import packing, predictor
from big_distill.export.evaluation import evaluate_file
from big_distill.resolve import resolve
from big_distill.run_dir.layout import read_config
from big_distill.training.data import open_data
from big_distill.training.evaluation import open_eval
from big_distill.training.loop import train_and_evaluate


@pytest.fixture
def panoramas(tiny, tmp_path):
    """Makes grey images of 24 x 72 and 60 x 20 px, of ten kinds of noise, and a config that trains on them."""
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "panoramas" / f"kind{label}"
        folder.mkdir(parents=True)
        for index in range(6):
            size = (24, 72) if index % 2 else (60, 20)
            noise = rng.integers(0, 25 * (label + 1), size, np.uint8)
            Image.fromarray(noise).save(folder / f"{index}.png")
    tiny.source.update(name="folder", path=str(tmp_path / "panoramas"), train="train[:60%]", num_train_examples=36)
    tiny.source.update(validation=None, test="train[60%:]")
    tiny.batch_size, tiny.total_steps, tiny.eval_every_steps, tiny.view.resize = 16, 2, 2, 10
    return tiny


@pytest.mark.full
@pytest.mark.parametrize("fit", cases("pad", full=["crop", "squash"]))
def test_all_that_reads_a_network_shows_it_the_same_view(fit, panoramas, tmp_path):
    panoramas.view.fit = fit
    run = tmp_path / "run"
    train_and_evaluate(resolve(panoramas, jax.device_count(), "cpu"), run)
    assert weights.load(run).architecture.fit == fit and weights.read_architecture(run).fit == fit
    packing.pack(run, ["container", "stablehlo"], "final", "train[60%:]")
    data = open_eval(read_config(run), "train[60%:]", BIT_DEPTH)
    examples = data.source.read(np.arange(data.source.num_examples))
    views = np.concatenate([batch["pixels"][batch["mask"]] for batch in data])
    want = scipy.special.softmax(predictor.of_network(weights.load(run)).classify(views), axis=-1)
    for path in (run, run / "student.bdz", run / "student.stablehlo"):
        got = big_distill.load(path).predict([image for image, _ in examples])
        np.testing.assert_allclose(got, want, atol=1e-6, err_msg=str(path))
    network = weights.load(run)
    other = dataclasses.replace(network.architecture, fit=next(name for name in FITS if name != fit))
    weights.save(tmp_path / "other.npz", dataclasses.replace(network, architecture=other))
    with pytest.raises(RunError, match=f"other.npz is not of this run: its fit is {other.fit}, the run's is {fit}"):
        evaluate_file(tmp_path / "other.npz", run, "train[60%:]")


@pytest.mark.parametrize(("fit", "cut"), [("crop", "67 %"), ("squash", ""), ("pad", "")])
def test_a_run_says_how_much_of_its_images_nobody_sees(fit, cut, panoramas, tmp_path, capsys):
    """Tall and wide images alike keep a third of their area. A file that cannot be read has no size."""
    panoramas.view.fit = fit
    (tmp_path / "panoramas" / "kind0" / "0.png").write_bytes(b"no image")
    open_data(resolve(panoramas, jax.device_count(), "cpu"))
    said = f"sees the centre square, without {cut} of the median image (config.view.fit=crop); squash and pad show all"
    assert (said in capsys.readouterr().out) is bool(cut)


def test_square_images_need_no_word(tiny, capsys):
    open_data(resolve(tiny, jax.device_count(), "cpu"))
    assert "centre square" not in capsys.readouterr().out

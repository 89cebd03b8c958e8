"""Checks which weights are zero, which values shared weights have, and that no optimiser leaks through."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import cases

from big_distill import compress, weights
from big_distill.compress import pruning, sharing
from big_distill.config import CompressConfig, Config
from big_distill.errors import ConfigError, Preempted
from big_distill.resolve import resolve
from big_distill.state import Representation, materialize
from big_distill.training.evaluation import evaluate_run
from big_distill.training.loop import train_and_evaluate

KEY = jax.random.key(0)


def params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"conv1": (3, 3, 2, 8), "fc1": (40, 30), "head": (30, 10)}
    return {
        name: {"kernel": jnp.float32(rng.normal(size=shape)), "bias": jnp.float32(rng.normal(size=shape[-1]))}
        for name, shape in shapes.items()
    }


def plan(total_steps=100, init_from=None, **fields):
    run = Config(num_classes=10, total_steps=total_steps, init_from=init_from, compress=CompressConfig(**fields))
    return compress.make_scheme(run, params())


def zeros(how):
    return int((~np.asarray(how.mask)).sum())


def test_cubic_is_zhu_and_guptas():
    got = [float(pruning.progress("cubic", jnp.int32(step), 10, 30, 0.9)) for step in (0, 10, 15, 20, 30, 99)]
    np.testing.assert_allclose(got, [0, 0, 1 - 0.75**3, 1 - 0.5**3, 1, 1], rtol=1e-6)
    assert [float(pruning.progress("cubic", jnp.int32(step), 5, 5, 0.9)) for step in (4, 5)] == [0, 1]
    due = [step for step in range(40) if pruning.is_due(jnp.int32(step), 10, 30, 7)]
    assert due == [10, 17, 24, 30]


@pytest.mark.parametrize("scope", cases("global", full=["layer"]))
def test_exactly_so_many_of_the_smallest_go(scope):
    dense = params()
    asked = plan(sparsity=0.7, scope=scope, prune_end=0.0)
    _, masks = asked.encode(dense)
    assert sorted(masks) == ["conv1/kernel", "fc1/kernel", "head/kernel"]
    kernels = {name: np.asarray(dense[name.split("/")[0]]["kernel"]) for name in masks}
    groups = [list(masks)] if scope == "global" else [[name] for name in masks]
    for group in groups:
        sizes = np.concatenate([np.abs(kernels[name]).ravel() for name in group])
        kept = np.concatenate([np.asarray(masks[name].mask).ravel() for name in group])
        assert (~kept).sum() == round(0.7 * len(sizes))
        assert sizes[~kept].max() <= sizes[kept].min()


def test_rates_by_layer_and_what_is_not_named_stays_dense():
    asked = plan(layer_sparsity=("fc.*/kernel=0.9", "head/.*=0.5"), scope="layer", prune_end=0.0)
    _, masks = asked.encode(params())
    assert {name: zeros(how) / how.mask.size for name, how in masks.items()} == {
        "conv1/kernel": 0, "fc1/kernel": 0.9, "head/kernel": 0.5,
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"config.compress.layer_sparsity: 'fc9/kernel' matches no kernel; did you mean"
    ):
        plan(layer_sparsity=("fc9/kernel=0.9",), scope="layer")
    with pytest.raises(ConfigError, match=r"config.compress.layers: 'conv9' matches no kernel"):
        plan(sparsity=0.5, layers="conv9")


def test_what_is_pruned_never_comes_back():
    asked = plan(total_steps=100, sparsity=0.8, prune_begin=0.1, prune_end=0.5, prune_every_steps=10)
    _, masks = asked.encode(params())
    refresh = jax.jit(asked.refresh)
    counts = []
    for step in range(1, 101):
        before = masks
        other = params(seed=step)  # every weight changes its size
        masks = refresh(other, masks, jnp.int32(step))
        assert all(not np.any(masks[name].mask & ~before[name].mask) for name in masks)
        counts.append(sum(map(zeros, masks.values())))
    total = sum(how.mask.size for how in masks.values())
    assert counts[8] == 0 and counts[-1] == round(0.8 * total)
    changed = [step for step, (a, b) in enumerate(itertools.pairwise(counts), 2) if a != b]
    assert changed == [20, 30, 40, 50]
    assert counts[29] == round(0.8 * total * (1 - 0.5**3))


@pytest.mark.full
def test_a_new_head_of_zeros_is_not_taken_for_small():
    dense = params()
    dense["head"]["kernel"] *= 0
    for scope in ("global", "layer"):
        _, masks = plan(sparsity=0.3, scope=scope, prune_end=0.0).encode(dense)
        assert zeros(masks["head/kernel"]) == 0 and zeros(masks["fc1/kernel"]) >= 360


@pytest.mark.full
def test_no_layer_is_left_with_nothing():
    """A head that begins at zero stays smaller than all other layers for long."""
    dense = params()
    dense["head"]["kernel"] = 1e-3 * dense["head"]["kernel"]
    asked = plan(sparsity=0.8, prune_end=0.5, total_steps=10, prune_every_steps=1)
    _, masks = asked.encode(dense)
    for step in range(1, 11):
        masks = asked.refresh(dense, masks, jnp.int32(step))
    sizes = {name: how.mask.size for name, how in masks.items()}
    assert sizes["head/kernel"] - zeros(masks["head/kernel"]) == round(0.02 * sizes["head/kernel"])
    assert sum(map(zeros, masks.values())) == round(0.8 * sum(sizes.values()))


def test_zeros_of_what_a_run_starts_from_stay():
    dense = params()
    dense["fc1"]["kernel"] = dense["fc1"]["kernel"].at[:20].set(0)
    dense["head"]["kernel"] *= 0
    _, masks = plan(sparsity=0.01, init_from="run").encode(dense)
    assert (zeros(masks["fc1/kernel"]), zeros(masks["head/kernel"])) == (600, 300)
    _, masks = plan(sparsity=0.01).encode(dense)
    assert (zeros(masks["fc1/kernel"]), zeros(masks["head/kernel"])) == (0, 0)


@pytest.mark.full
def test_the_final_count_is_exact_for_many_weights():
    sizes = {"kernel": jnp.ones(17_000_001)}
    (mask,) = jax.jit(lambda p: pruning.keep_largest(sizes, 0.9, p))(jnp.float32(1)).values()
    assert int((~mask).sum()) == round(0.9 * 17_000_001)


@pytest.mark.full
def test_iterative_rounds_lose_the_same_share_of_what_is_left():
    fields = {"sparsity": 0.936, "prune_schedule": "iterative", "prune_begin": 0.1, "prune_end": 0.4}
    asked = plan(total_steps=100, prune_every_steps=10, **fields)
    _, masks = asked.encode(params())
    left = []
    for step in range(1, 51):
        masks = asked.refresh(params(), masks, jnp.int32(step))
        left.append(sum(how.mask.size - zeros(how) for how in masks.values()))
    total = sum(how.mask.size for how in masks.values())
    np.testing.assert_allclose(np.array(left)[[9, 19, 29, 39]] / total, [1, 0.4, 0.16, 0.064], atol=1 / total)


def test_two_of_every_four_inputs_stay():
    dense = params()
    dense["conv1"]["kernel"] = jnp.float32(np.random.default_rng(0).normal(size=(3, 3, 8, 6)))
    run = Config(num_classes=10, total_steps=10, compress=CompressConfig(structure="2:4", prune_end=0.3))
    asked = compress.make_scheme(run, dense)
    assert asked.prunes and asked.done_at == 3
    _, masks = asked.encode(dense)
    assert not any(map(zeros, masks.values()))
    for step in (1, 2, 3, 4):
        masks = asked.refresh(dense, masks, jnp.int32(step))
        assert bool(zeros(masks["fc1/kernel"])) == (step >= 3)
    for name in ("conv1/kernel", "fc1/kernel"):
        kernel, mask = np.asarray(dense[name.split("/")[0]]["kernel"]), np.asarray(masks[name].mask)
        groups = mask.reshape(*mask.shape[:-2], -1, 4, mask.shape[-1])
        assert (groups.sum(-2) == 2).all()
        sizes = np.abs(kernel).reshape(groups.shape)
        assert (np.where(groups, sizes, np.inf).min(-2) >= np.where(groups, 0, sizes).max(-2)).all()
    assert zeros(masks["head/kernel"]) == 0, "30 inputs are no multiple of 4"
    with pytest.raises(ConfigError, match=r"config.compress.structure='2:7': no kernel's inputs fit it"):
        compress.make_scheme(dataclasses.replace(run, compress=CompressConfig(structure="2:7")), dense)


def test_integers_with_a_scale_a_filter():
    dense = params()
    asked = plan(integer_bits=4, layers="(fc1|conv1)/kernel")
    trained, aux = asked.encode(dense)
    assert trained is dense and not asked.prunes and sorted(aux) == ["conv1/kernel", "fc1/kernel"]
    made = materialize(trained, aux)
    for name in ("conv1", "fc1"):
        kernel, rounded = np.asarray(dense[name]["kernel"]), np.asarray(made[name]["kernel"])
        scale = np.abs(kernel).max(tuple(range(kernel.ndim - 1))) / np.float32(7)
        np.testing.assert_allclose(rounded, np.clip(np.round(kernel / scale), -7, 7) * scale, rtol=1e-6, atol=1e-7)
    assert made["head"] is dense["head"] or (made["head"]["kernel"] == dense["head"]["kernel"]).all()
    gradient = jax.grad(lambda p: jnp.sum(3 * materialize(p, aux)["fc1"]["kernel"]))(trained)["fc1"]["kernel"]
    np.testing.assert_array_equal(gradient, 3)


def test_a_layer_that_is_all_pruned_is_zero_and_not_nan():
    asked = plan(integer_bits=8, scope="layer", layer_sparsity=("conv1/kernel=0.9999",), prune_end=0.0)
    trained, aux = asked.encode(params())
    np.testing.assert_array_equal(materialize(trained, aux)["conv1"]["kernel"], 0)


def test_zeros_of_what_is_not_fresh_stay():
    dense = params()
    dense["fc1"]["kernel"] = dense["fc1"]["kernel"].at[:20].set(0)
    dense["head"]["kernel"] *= 0
    run = Config(
        num_classes=10, total_steps=9, init_from="run", init_fresh="head/.*", compress=CompressConfig(integer_bits=8)
    )
    _, aux = compress.make_scheme(run, dense).encode(dense)
    assert (zeros(aux["fc1/kernel"]), zeros(aux["head/kernel"])) == (600, 0)


@pytest.mark.full
def test_a_factor_is_called_by_its_layer_too():
    dense = params()
    first, last = {"kernel": jnp.ones((40, 3))}, {"kernel": jnp.ones((3, 30))}
    dense["fc1"] = {"bias": dense["fc1"]["bias"], "first": first, "last": last}
    for layers, count in (("fc1/kernel", 2), ("fc1/first/kernel", 1), (".*/kernel", 4)):
        run = Config(num_classes=10, total_steps=9, compress=CompressConfig(layers=layers, integer_bits=8))
        assert len(compress.make_scheme(run, dense).encode(dense)[1]) == count


@pytest.mark.full
def test_pruned_integers():
    asked = plan(integer_bits=8, sparsity=0.5, prune_end=0.0)
    trained, aux = asked.encode(params())
    made = materialize(trained, asked.refresh(trained, aux, jnp.int32(1)))
    count = sum(int((made[name]["kernel"] == 0).sum()) for name in made)
    total = sum(made[name]["kernel"].size for name in made)
    assert count >= round(0.5 * total) and {how.top for how in aux.values()} == {127}
    gradient = jax.grad(lambda p: jnp.sum(materialize(p, aux)["fc1"]["kernel"]))(trained)["fc1"]["kernel"]
    np.testing.assert_array_equal(gradient != 0, np.asarray(aux["fc1/kernel"].mask))


@pytest.mark.full
def test_the_rest_in_bfloat16():
    dense = params()
    trained, aux = plan(rest="bfloat16", sparsity=0.5).encode(dense)
    made = materialize(trained, aux)
    for name in dense:
        np.testing.assert_array_equal(made[name]["bias"], dense[name]["bias"].astype(jnp.bfloat16).astype("f"))
        np.testing.assert_array_equal(made[name]["kernel"], dense[name]["kernel"].astype(jnp.bfloat16).astype("f"))
    everything = plan(rest="bfloat16")
    trained, aux = everything.encode(dense)
    assert len(aux) == 6 and not everything.prunes
    gradient = jax.grad(lambda p: jnp.sum(materialize(p, aux)["fc1"]["bias"]))(trained)["fc1"]["bias"]
    np.testing.assert_array_equal(gradient, 1)
    refreshed = plan(rest="bfloat16", sparsity=0.5, prune_end=0.0)
    trained, aux = refreshed.encode(dense)
    assert refreshed.refresh(trained, aux, jnp.int32(5)).keys() == aux.keys()


@pytest.mark.parametrize("initial", ["linear", "density", "random"])
def test_k_means_ends_where_no_weight_has_a_nearer_value(initial):
    kernel = np.random.default_rng(0).normal(size=(30, 20)).astype("f")
    kernel[np.abs(kernel) < 0.5] = 0
    values, codes = map(np.asarray, sharing.share(jnp.array(kernel), 3, initial, KEY))
    assert values.shape == (8,) and (np.diff(values) >= 0).all() and codes.dtype == np.uint16
    np.testing.assert_array_equal(codes == 0, kernel == 0)
    used = kernel[kernel != 0]
    distance = np.abs(used[:, None] - values)
    np.testing.assert_allclose(distance[np.arange(len(used)), codes[codes != 0] - 1], distance.min(1), atol=1e-6)
    assert np.square(distance.min(1)).mean() < 0.05 * used.var()
    for code in range(8):
        mine = kernel[codes == code + 1]
        if len(mine):
            np.testing.assert_allclose(values[code], mine.mean(), atol=1e-5)


def test_as_many_values_as_weights_lose_nothing():
    kernel = jnp.float32([[0.5, -1, 0], [2, 0, 7]])
    values, codes = sharing.share(kernel, 2, "density", KEY)
    np.testing.assert_allclose(
        materialize({"kernel": values}, {"kernel": Representation(codes=codes)})["kernel"], kernel
    )


def test_a_values_gradient_is_the_sum_over_its_weights():
    """The test follows Han et al. 2016, figure 3."""
    codes = jnp.uint16([[4, 1, 2, 3], [2, 2, 1, 4], [1, 4, 2, 1], [4, 1, 3, 3]]).T
    gradient = jnp.float32(np.random.default_rng(0).normal(size=(4, 4)))

    def loss(values):
        return jnp.sum(gradient * materialize({"kernel": values}, {"kernel": Representation(codes=codes)})["kernel"])

    got = jax.grad(loss)(jnp.zeros(4))
    np.testing.assert_allclose(
        got, [np.asarray(gradient)[np.asarray(codes) == code].sum() for code in (1, 2, 3, 4)], rtol=1e-5
    )


def resolved(config):
    return resolve(config, jax.device_count(), "cpu")


@pytest.fixture
def staged(tiny):
    """Makes a config of two stages: the first prunes while it trains, the second shares weights."""
    first = tiny.copy_and_resolve_references()
    first.compress.sparsity, first.compress.prune_end, first.compress.prune_every_steps = 0.6, 0.5, 1
    first.optimizer.weight_decay = 0.1  # would leak through a mask
    tiny.init_config = first
    tiny.compress.bits = 3
    tiny.compress.layer_bits = ("head/kernel=2",)
    return tiny


def kernels(directory):
    named = jax.tree.leaves_with_path(weights.load(directory).variables["params"])
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in named if x.ndim > 1}


@pytest.mark.full
def test_prune_then_share(staged, tmp_path):
    summary = train_and_evaluate(resolved(staged), tmp_path / "run")
    pruned, shared = kernels(tmp_path / "run" / "init"), kernels(tmp_path / "run")
    total = sum(kernel.size for kernel in pruned.values())
    assert sum(int((kernel == 0).sum()) for kernel in pruned.values()) == round(0.6 * total)
    for name, kernel in shared.items():
        np.testing.assert_array_equal(kernel == 0, pruned[name] == 0)
        assert len(np.unique(kernel[kernel != 0])) <= 2 ** (2 if name.startswith("head") else 3)
    assert any(not np.isin(shared[name], pruned[name]).all() for name in shared)
    assert summary["student"]["num_nonzero"] < summary["student"]["num_params"]
    latest = evaluate_run(tmp_path / "run", "validation", "latest")
    assert latest == evaluate_run(tmp_path / "run", "validation")
    assert evaluate_run(tmp_path / "run" / "init", "validation", "latest")["accuracy"] == pytest.approx(
        json.loads((tmp_path / "run" / "init" / "summary.json").read_text())["student"]["accuracy"]
    )


@pytest.mark.full
@pytest.mark.parametrize("stop", [2, 6 + 2])
def test_every_stage_resumes_to_the_bit(staged, train_once, tmp_path, interrupt_after, stop):
    staged.checkpoint_every_steps = staged.init_config.checkpoint_every_steps = 1
    whole = train_once(resolved(staged), tmp_path / "whole")
    interrupt_after(stop)
    with pytest.raises(Preempted):
        train_and_evaluate(resolved(staged), tmp_path / "run")
    resumed = train_and_evaluate(resolved(staged), tmp_path / "run")
    assert resumed["params_sha256"] == whole["params_sha256"]
    first, second = (tmp_path / "run" / "init" / "resumes.json").is_file(), bool(resumed["resumed_at"])
    assert (first, second) == ((True, False) if stop < 6 else (False, True))


@pytest.mark.full
def test_a_begun_second_stage_does_not_need_the_first(staged, train_once, tmp_path, interrupt_after):
    whole = train_once(resolved(staged), tmp_path / "whole")
    interrupt_after(6 + 3)
    with pytest.raises(Preempted):
        train_and_evaluate(resolved(staged), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "init")
    resumed = train_and_evaluate(resolved(staged), tmp_path / "run")
    assert resumed["params_sha256"] == whole["params_sha256"] and not (tmp_path / "run" / "init").exists()


def test_both_stages_are_of_one_network(staged):
    staged.init_config.student.features = (4, 9)
    with pytest.raises(
        ConfigError, match=r"config.init_config.student.features=\(4, 9\) differs from config.student.feat"
    ):
        resolved(staged)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("sparsity", 1.0, r"config.compress.sparsity=1.0: expected a number in \[0, 1\)"),
        ("layer_sparsity", ("fc1=1",), r"layer_sparsity='fc1=1': expected PATTERN=SHARE"),
        ("layer_sparsity", ("fc1/kernel=0.5",), r"needs config.compress.scope='layer'"),
        ("layer_bits", ("fc1=99",), r"layer_bits='fc1=99': expected PATTERN=BITS, 1 to 12"),
        ("bits", 4, r"config.compress.bits=4 needs a trained network: set config.init_from"),
        ("prune_end", 0.0, r"config.compress.prune_end=0.0 prunes before anything is learned: set config.init_from"),
        ("scope", "globl", r"config.compress.scope='globl' is not known; did you mean 'global'\?"),
        ("prune_begin", 0.7, r"prune_begin=0.7, prune_end=0.5: expected prune_begin <= prune_end"),
        ("structure", "chanels", r"config.compress.structure='chanels' is not known; did you mean 'channels'\?"),
        ("structure", "4:2", r"config.compress.structure='4:2': expected N:M with N < M"),
        ("structure", "2:4", r"config.compress.structure='2:4' says how many stay: unset config.compress.sparsity"),
        ("structure", "channels", r"structure='channels' needs a trained network: set config.init_from or"),
        ("rank_flops", 0.5, r"rank_flops needs a trained network: set config.init_from or init_config"),
        ("rank_energy", 1.5, r"config.compress.rank_energy=1.5: expected a number in"),
        ("integer_bits", 9, r"config.compress.integer_bits=9: expected one of 0, 2, 3,"),
        ("rest", "float16", r"config.compress.rest='float16' is not known; did you mean 'bfloat16'"),
        ("prune_schedule", "cubc", r"config.compress.prune_schedule='cubc' is not known; did you mean 'cubic'"),
        ("layers", "(", r"config.compress.layers='\(' is not a regular expression"),
    ],
)
def test_mistakes_are_named(tiny, field, value, message):
    tiny.compress.sparsity = 0.5
    tiny.compress[field] = value
    with pytest.raises(ConfigError, match=message):
        resolved(tiny)


def test_an_uncompressed_run_is_untouched():
    dense = params()
    same, aux = plan().encode(dense)
    assert aux == {} and same is dense and materialize(dense, aux) is dense
    assert not plan().prunes and not plan(bits=3).prunes and plan(sparsity=0.1).prunes
    assert plan().bits == {} and plan().sparsity == {}


@pytest.mark.full
def test_only_a_student_that_is_pruned_is_the_best(tiny, tmp_path):
    tiny.compress.sparsity, tiny.compress.prune_end, tiny.compress.prune_every_steps = 0.5, 0.8, 1
    tiny.eval_every_steps = tiny.checkpoint_every_steps = 1
    tiny.keep_best = 6
    summary = train_and_evaluate(resolved(tiny), tmp_path / "run")
    assert summary["best_step"] >= round(0.8 * 6)
    best = evaluate_run(tmp_path / "run", "validation", "best")
    assert best["num_examples"] == 200

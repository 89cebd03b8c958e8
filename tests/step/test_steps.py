"""Checks the step as a pure function: what both branches see, what is differentiated, when nothing may change."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiers import cases

from big_distill.config import Config, ObjectiveConfig, SourceConfig, ViewConfig
from big_distill.data import array_source
from big_distill.data.pipeline import TrainPipeline
from big_distill.errors import ConfigError
from big_distill.parallel import sharding
from big_distill.state import Card, Model, Outputs, Teacher, TrainState
from big_distill.step import objectives, scoring, steps
from big_distill.step.views import for_network, make_views, mixup

B, S, K = 16, 6, 5
CARD = Card(image_size=S)


def linear(num_classes=K):
    """Makes a network with logits linear in the pixels, and a count of training calls as running statistics."""

    def init(rng, image):
        size = image[0].size
        return {
            "params": {"kernel": jax.random.normal(rng, (size, num_classes)) / size},
            "batch_stats": {"n": jnp.zeros(())},
        }

    def apply(variables, image, *, train, rng=None):
        logits = image.reshape(image.shape[0], -1) @ variables["params"]["kernel"]
        return Outputs(logits=logits), {"n": variables["batch_stats"]["n"] + train}

    return Model(init, apply)


def probe():
    """Makes a network whose logits are its input's pixels."""

    def apply(variables, image, *, train, rng=None):
        return Outputs(logits=image.reshape(len(image), -1)), {}

    return Model(lambda rng, image: {"params": {}}, apply)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "step": np.int32(0),
        "pixels": rng.integers(0, 256, (B, S, S, 1), dtype=np.uint8),
        "label": rng.integers(0, K, B).astype(np.int32),
        "lam": np.float32(0.7),
    }


def step_of_one(student, **kwargs):
    """Makes the train step of one student, from a state to a state."""
    train_step = steps.make_train_step([student], num_classes=K, **kwargs)

    def step(state, teacher, batch):
        (state,), (metrics,) = train_step((state,), teacher, batch)
        return state, metrics

    return step


def setup(name="function_matching", accumulate_steps=1, max_skipped_steps=0, **kwargs):
    model, tx = linear(), optax.adam(1e-2)
    objective = objectives.build(ObjectiveConfig(name=name, **kwargs))
    student = steps.Student(model, CARD, objective, tx, max_skipped_steps=max_skipped_steps)
    step = step_of_one(student, accumulate_steps=accumulate_steps)
    variables = model.init(jax.random.key(0), jnp.zeros((1, S, S, 1)))
    params, batch_stats = variables["params"], variables["batch_stats"]
    state = TrainState(jnp.int32(0), params, {}, batch_stats, tx.init(params), jnp.int32(0))
    teacher = Teacher((model.init(jax.random.key(1), jnp.zeros((1, S, S, 1))),), (model,), (CARD,), (None,))
    return step, state, teacher


def test_mixup_partner_is_the_batch_rolled_by_one(batch):
    view, teacher_view, targets = make_views(batch, K)
    x = batch["pixels"] / np.float64(255)
    np.testing.assert_allclose(view, 0.7 * x + 0.3 * np.roll(x, 1, 0), atol=1e-6)
    y = np.eye(K)[batch["label"]]
    np.testing.assert_allclose(targets, 0.7 * y + 0.3 * np.roll(y, 1, 0), atol=1e-6)
    assert teacher_view is view


def test_partners_travel_as_bytes(batch):
    text = jax.jit(lambda batch: make_views(batch, K)).lower({**batch, "lam": jnp.float32(0.7)}).as_text()
    rolls = [line for line in text.splitlines() if "concatenate" in line and f"x{S}x{S}x" in line]
    assert rolls and all("xui8>" in line for line in rolls)


def test_lambda_one_leaves_every_bit():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    np.testing.assert_array_equal(mixup(x, jnp.float32(1)), x)


def test_branches_see_the_same_pixels_unless_the_teacher_has_its_own(batch):
    teacher = Teacher(({"params": {}},), (probe(),), (CARD,), (None,))
    own = {**batch, "lam": np.float32(1), "teacher_pixels": batch["pixels"][:, ::-1]}
    for given, same in ((batch, True), (own, False)):
        view, teacher_view, _ = make_views(given, K)
        seen_by_teacher = steps.teacher_logits(teacher, teacher_view)
        seen_by_student = probe().apply({}, for_network(view, CARD), train=True)[0].logits
        assert bool(jnp.all(seen_by_teacher == seen_by_student)) is same


def test_value_range_and_size_are_the_cards(batch):
    white = jnp.ones((2, S, S, 3))
    np.testing.assert_allclose(for_network(white, CARD), 1)
    np.testing.assert_allclose(for_network(0 * white, CARD), -1)
    imagenet = Card(image_size=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    seen = for_network(white, imagenet)
    assert seen.shape == (2, 3, 3, 3)
    np.testing.assert_allclose(seen[0, 0, 0], (1 - np.array(imagenet.mean)) / imagenet.std, rtol=1e-6)


def test_probes_see_the_same_through_the_real_step(batch):
    """The logits of both networks are their input: the loss is exactly zero if and only if both saw the same."""
    tx, variables = optax.sgd(1.0), {"params": {}, "batch_stats": {}}
    objective = objectives.build(ObjectiveConfig(name="logit_regression"))
    step = jax.jit(step_of_one(steps.Student(probe(), CARD, objective, tx), log_view_hash=True))
    state = TrainState(jnp.int32(0), **variables, aux={}, opt_state=tx.init({}), skipped=jnp.int32(0))
    teacher = Teacher((variables,), (probe(),), (CARD,), (None,))
    _, metrics = step(state, teacher, batch)
    assert float(metrics["loss"]) == 0 and int(metrics["view_hash"]) == int(metrics["teacher_view_hash"])
    one_pixel = batch["pixels"].copy()
    one_pixel[3, 2, 1] ^= 1
    _, metrics = step(state, teacher, {**batch, "lam": np.float32(1), "teacher_pixels": one_pixel})
    assert float(metrics["loss"]) > 0 and int(metrics["view_hash"]) != int(metrics["teacher_view_hash"])


def test_no_gradient_reaches_the_teacher(batch):
    _, state, teacher = setup()

    def loss(variables):
        _, view, labels = make_views(batch, K)
        targets = steps.ask(teacher.replace(variables=variables), view, ()).replace(labels=labels)
        student, _ = linear().apply({"params": state.params, "batch_stats": {"n": 0}}, view, train=True)
        losses, _, _ = objectives.build(ObjectiveConfig(temperature=2.0)).loss({}, student, targets, jax.random.key(0))
        return losses.sum()

    for leaf in jax.tree.leaves(jax.grad(loss)(teacher.variables)):
        np.testing.assert_array_equal(leaf, 0)


def test_student_equal_to_its_teacher_has_nothing_to_learn(batch):
    step, state, teacher = setup()
    same = teacher.replace(variables=({"params": state.params, "batch_stats": state.batch_stats},))
    _, metrics = jax.jit(step)(state, same, batch)
    assert float(metrics["loss"]) == float(metrics["kl"]) == 0
    assert float(metrics["grad_norm"]) < 1e-6
    assert float(metrics["agreement"]) == 1


def test_step_learns_counts_and_keeps_running_statistics(batch):
    step, state, teacher = setup()
    step = jax.jit(step)
    losses = []
    for index in range(30):
        state, metrics = step(state, teacher, {**batch, "step": np.int32(index)})
        losses.append(float(metrics["loss"]))
        assert bool(metrics["applied"])
    assert losses[-1] < 0.2 * losses[0]
    assert int(state.step) == 30 and float(state.batch_stats["n"]) == 30


@pytest.mark.parametrize("name", ["function_matching", "hinton"])
def test_accumulation_is_the_whole_batch(batch, name):
    """Mixup comes before the split, so parts and whole have the same partners."""
    whole, state, teacher = setup(name)
    parts, _, _ = setup(name, accumulate_steps=4)
    after_whole, metrics_whole = jax.jit(whole)(state, teacher, batch)
    after_parts, metrics_parts = jax.jit(parts)(state, teacher, batch)
    for key in ("loss", "grad_norm", "kl"):
        np.testing.assert_allclose(metrics_whole[key], metrics_parts[key], rtol=1e-5)
    np.testing.assert_allclose(after_whole.params["kernel"], after_parts.params["kernel"], atol=1e-6)


@pytest.mark.parametrize("accumulate_steps", cases(4, full=[1]))
def test_two_students_of_one_step_learn_as_each_does_alone(batch, accumulate_steps):
    """Their losses, rates and steps differ; the teacher is asked once."""
    _, state, teacher = setup()
    asked = []

    def counting(variables, image, *, train, rng=None):
        asked.append(image.shape)
        return linear().apply(variables, image, train=train)

    teacher = teacher.replace(models=(Model(linear().init, counting),))
    students = [
        steps.Student(linear(), Card(size), objectives.build(ObjectiveConfig(name=name)), tx, seed=size)
        for name, tx, size in (("function_matching", optax.sgd(0.1), S), ("cross_entropy", optax.adam(0.01), 3))
    ]
    kernels = [state.params["kernel"], jnp.zeros((9, K))]  # the second student sees 3 px a side
    states = tuple(
        state.replace(params={"kernel": kernel}, opt_state=student.tx.init({"kernel": kernel}))
        for student, kernel in zip(students, kernels, strict=True)
    )
    together = steps.make_train_step(students, num_classes=K, accumulate_steps=accumulate_steps)
    after, metrics = together(states, teacher, batch)
    assert len(asked) == (1 if accumulate_steps == 1 else 2)  # a scan is traced twice: once for its shapes
    for student, before, found, measured in zip(students, states, after, metrics, strict=True):
        alone, wanted = step_of_one(student, accumulate_steps=accumulate_steps)(before, teacher, batch)
        jax.tree.map(np.testing.assert_array_equal, (alone, wanted), (found, measured))
    (_, waiting), _ = together((states[0], states[1].replace(step=jnp.int32(7))), teacher, batch)  # not its batch
    np.testing.assert_array_equal(waiting.params["kernel"], kernels[1])


def returning(losses=None, stats=None, metrics=None):
    """Makes an objective whose loss returns these."""

    def loss(variables, student, targets, rng):
        del variables, targets, rng
        own = jnp.mean(jnp.square(student.logits), -1)
        return own if losses is None else losses, stats or {}, metrics or {}

    return objectives.Objective(frozenset(), loss)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (returning(losses=jnp.zeros(3)), r"returned shape \(3,\), expected one loss an example, \(\d+,\)"),
        (returning(stats={"n": jnp.zeros(())}), "returned other stats than it was given"),
        (
            objectives.Objective(frozenset(), lambda *args: None),
            r"returned NoneType, expected \(loss \[B\], stats, metrics\)",
        ),
        (objectives.of_losses(lambda *args: None), "returned NoneType, expected one loss an example"),
        (
            returning(metrics={"loss": jnp.zeros(())}),
            "has a metric 'loss': expected a scalar of a name that is not taken",
        ),
        (returning(metrics={"hint": jnp.zeros(2)}), "metric 'hint': expected a scalar"),
        (dataclasses.replace(returning(), reads=frozenset({"maps"})), "reads 'maps', which a teacher does not have"),
    ],
)
@pytest.mark.parametrize("accumulate_steps", [1, 2])
def test_what_an_objective_must_return(batch, objective, message, accumulate_steps):
    _, state, teacher = setup()
    step = step_of_one(steps.Student(linear(), CARD, objective, optax.adam(1e-2)), accumulate_steps=accumulate_steps)
    with pytest.raises(ConfigError, match=message):
        step(state, teacher, batch)


def test_an_objective_reads_what_there_is():
    with pytest.raises(ConfigError, match="it reads 'map'; did you mean 'maps'"):
        objectives.Objective(frozenset({"map"}), returning().loss)
    assert objectives.Objective(["logits", "maps"], returning().loss).reads == {"logits", "maps"}
    assert objectives.Objective("logits", returning().loss).reads == {"logits"}


def test_parts_of_a_batch_stay_on_their_devices(batch, eight_devices):
    """Eight devices compute four parts each; only the gradients and mixup's one row travel."""
    step, state, teacher = setup(accumulate_steps=4)
    mesh = sharding.make_mesh()
    wide = {name: np.concatenate([x, x]) if np.ndim(x) else x for name, x in batch.items()}
    args = *jax.device_put((state, teacher), sharding.replicated(mesh)), sharding.to_devices(mesh, wide)
    text = jax.jit(step, out_shardings=sharding.replicated(mesh)).lower(*args).compile().as_text()
    assert "all-reduce" in text
    assert "all-gather" not in text and "all-to-all" not in text


def test_nothing_changes_after_a_step_that_is_not_finite(batch):
    step, state, teacher = setup()
    step = jax.jit(step)
    state, _ = step(state, teacher, batch)
    before = jax.tree.map(np.asarray, state)
    broken = {**batch, "step": np.int32(1), "lam": np.float32(np.nan)}
    state, metrics = step(state, teacher, broken)
    assert not bool(metrics["applied"])
    later, metrics = step(state, teacher, {**batch, "step": np.int32(2)})  # already dispatched when the host notices
    assert not bool(metrics["applied"])
    jax.tree.map(np.testing.assert_array_equal, before, later)


def test_a_skipped_step_moves_nothing_but_the_counts(batch):
    step, state, teacher = setup(max_skipped_steps=1)
    step = jax.jit(step)
    state, _ = step(state, teacher, batch)
    before = jax.tree.map(np.asarray, state)
    broken = {**batch, "step": np.int32(1), "lam": np.float32(np.nan)}
    state, metrics = step(state, teacher, broken)
    assert not bool(metrics["applied"])
    assert (int(state.step), int(state.skipped)) == (2, 1)
    for part in ("params", "batch_stats", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(state, part))
    frozen, _ = step(state, teacher, {**broken, "step": np.int32(2)})  # one too many
    jax.tree.map(np.testing.assert_array_equal, state, frozen)


def test_eight_devices_are_one(batch, eight_devices):
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    step, state, teacher = setup()
    alone, _ = jax.jit(step)(state, teacher, batch)
    together = sharding.to_devices(mesh, batch)
    assert len(together["pixels"].sharding.device_set) == 8
    state, teacher = jax.device_put((state, teacher), sharding.replicated(mesh))
    spread, _ = jax.jit(step, out_shardings=sharding.replicated(mesh))(state, teacher, together)
    np.testing.assert_allclose(alone.params["kernel"], spread.params["kernel"], atol=1e-6)


@pytest.mark.parametrize("num_labelled", [50, 31, 0])
def test_evaluation_counts_every_example_once(num_labelled):
    """Examples without a label count in the fidelity to the teacher alone."""
    rng = np.random.default_rng(0)
    student, teacher = 2 * rng.normal(size=(2, 50, 10)).astype(np.float32)
    label = rng.integers(0, 10, 50)
    label[rng.permutation(50)[num_labelled:]] = -1
    sums = []
    for start in range(0, 50, 16):
        rows = np.arange(start, start + 16) % 50
        mask = np.arange(start, start + 16) < 50
        sums.append(
            scoring.score(jnp.asarray(student[rows]), jnp.asarray(teacher[rows]), jnp.asarray(label[rows]), mask)
        )
    got = scoring.summarize(sums)

    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in np.float64([teacher, student]))
    order = np.argsort(-student, -1)
    known = label >= 0
    confidence, correct = q.max(-1)[known], (student.argmax(-1) == label)[known]
    bins = np.minimum((confidence * 15 - 1e-12).astype(int), 14)
    want = {
        "num_examples": 50,
        "kl": (p * np.log(p / q)).sum(-1).mean(),
        "agreement": (student.argmax(-1) == teacher.argmax(-1)).mean(),
        "agreement5": (order[:, :5] == teacher.argmax(-1)[:, None]).any(-1).mean(),
    }
    if num_labelled < 50:
        want["num_labelled"] = num_labelled
    if num_labelled:
        rate, z, answer = correct.mean(), 1.959964, student.argmax(-1)[known]
        centre = rate + z**2 / (2 * num_labelled)
        half = z * np.sqrt(rate * (1 - rate) / num_labelled + z**2 / (4 * num_labelled**2))
        of_label = [correct[label[known] == k] for k in range(10)]
        want |= {
            "accuracy": correct.mean(),
            "top5": (order[:, :5] == label[:, None]).any(-1)[known].mean(),
            "nll": -np.log(q[np.arange(50), label])[known].mean(),
            "accuracy_low": (centre - half) / (1 + z**2 / num_labelled),
            "accuracy_high": (centre + half) / (1 + z**2 / num_labelled),
            "balanced_accuracy": np.mean([own.mean() for own in of_label if len(own)]),
            "macro_f1": np.mean(
                [2 * own.sum() / (len(own) + (answer == k).sum()) for k, own in enumerate(of_label) if len(own)]
            ),
            "ece": sum(abs(confidence[bins == b].sum() - correct[bins == b].sum()) for b in range(15)) / num_labelled,
            "teacher_accuracy": (teacher.argmax(-1) == label)[known].mean(),
        }
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_a_fixed_teacher_never_changes_its_mind_about_an_example():
    """A teacher whose logits are its input sees the same in both epochs of the real pipeline."""
    images = np.random.default_rng(0).integers(0, 256, (8, 9, 9), dtype=np.uint8)
    source = array_source("eight", images, np.arange(8) % K, tuple("abcde"))
    view = ViewConfig(image_size=S, channels=1, regime="fixed", mixup=0.0, resize=S)
    config = Config(
        num_classes=K, batch_size=4, total_steps=4, view=view, source=SourceConfig(name="own", num_train_examples=8)
    )
    pipeline = TrainPipeline(config, source)
    teacher = Teacher(({"params": {}},), (probe(),), (CARD,), (None,))
    said, seen = {}, {}
    for step in range(4):
        student_view, teacher_view, _ = make_views(pipeline.batch(step), K)
        logits = np.asarray(steps.teacher_logits(teacher, teacher_view))
        for index, example in enumerate(pipeline.stream.ids(step)):
            said.setdefault(int(example), []).append(logits[index])
            seen.setdefault(int(example), []).append(np.asarray(student_view[index]))
    for example in range(8):
        first, second = said[example]
        np.testing.assert_array_equal(first, second)
        assert not np.array_equal(*seen[example]), "the student's crops are random"

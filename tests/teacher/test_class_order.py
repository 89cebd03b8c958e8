"""Checks that the order of a teacher's classes is never taken on trust, and that its classes are chosen by name."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_teacher
import torch_writer

from big_distill import teacher as teachers
from big_distill import weights
from big_distill.config import ModelConfig, TeacherConfig
from big_distill.errors import ConfigError
from big_distill.parallel import sharding
from big_distill.state import Card, Model, Outputs
from big_distill.step.steps import teacher_logits
from big_distill.teacher import check, class_order
from big_distill.training import initial
from big_distill.training.loop import train_and_evaluate
from big_distill.weights import Network

FOLDERS = tuple(sorted(str(number) for number in range(1, 13)))  # "1", "10", "11", "12", "2", ...
NATURAL = tuple(str(number) for number in range(1, 13))


def test_orders_in_which_folders_are_listed():
    orders = class_order.candidates(FOLDERS)
    assert {order: [FOLDERS.index(name) for name in NATURAL] for order in orders} == {
        "natural": [places.index(i) for i in range(12) for places in [orders["natural"]]]
    }
    assert class_order.candidates(NATURAL).keys() == {"string"}, "that of the case-blind order is the same"
    assert class_order.candidates(("cat", "dog")) == class_order.candidates(()) == {}
    orders = class_order.candidates(("Zebra", "ant", "bee"))
    assert orders == {"case-blind": (2, 0, 1)}, "ant, bee, Zebra"
    assert class_order.candidates(("b10", "B9", "a"))["natural case-blind"] == (2, 1, 0)


@dataclasses.dataclass(frozen=True)
class Reader(weights.Architecture):
    """Describes a network that reads the class from the first pixel, and calls it by its place in `names`."""

    names: tuple[str, ...]
    card: Card = Card(image_size=2, mean=(0.0,), std=(1.0,))
    channels: int = 1
    resize: int = 2
    view_size: int = 2

    @property
    def num_classes(self):
        return len(self.names)

    def build(self, dtype, *, folded=False):
        order = jnp.asarray([self.names.index(name) for name in FOLDERS])

        def apply(variables, image, *, train, rng=None):
            seen = jnp.round(image[:, 0, 0, 0] * 255).astype(int)
            return Outputs(logits=variables["params"]["scale"] * jax.nn.one_hot(order[seen], self.num_classes)), {}

        return Model(lambda rng, image: {"params": {"scale": jnp.zeros(())}}, apply)

    def fold(self, variables):
        return variables

    @property
    def identity(self):
        return {"name": "reader"}


def checked(tmp_path, names, data_names=FOLDERS, card_names=(), labelled=True):
    """Checks a teacher with classes in the order of `names`; returns its result, and what is said of it."""
    file = tmp_path / "t.pth"
    file.touch()
    architecture = Reader(names, Card(2, (0.0,), (1.0,), card_names))
    network = weights.Network(architecture, {"params": {"scale": np.float32(9)}}, str(file))
    label = np.arange(66) % 12
    pixels = np.broadcast_to(label[:, None, None, None], (66, 2, 2, 1)).astype(np.uint8)
    batch = {"pixels": pixels, "mask": np.arange(66) < 60}
    batch |= {"label": np.where(np.arange(66) < 48, label, -1)} if labelled else {}
    mesh, settings = sharding.make_mesh(), Settings()
    teacher = teachers.freeze([network], settings, mesh, data_names)
    halves = [{name: values[i : i + 33] for name, values in batch.items()} for i in (0, 33)]
    (result,) = check.measure([network], teacher, settings, mesh, halves, data_names)
    assert json.loads(json.dumps(result))["orders"] == result["orders"], "it is kept as JSON"
    return result, class_order.warning(network, result, data_names, "the teacher")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Holds the fields of a config that the check reads."""

    teacher: TeacherConfig = TeacherConfig(dtype="float32")
    num_classes: int = 12
    dtype: str = "float32"
    matmul_precision: str = "highest"


def test_another_order_is_found_and_the_card_that_chooses_it_works(tmp_path):
    result, said = checked(tmp_path, NATURAL)
    assert result["accuracy"] == 4 / 48 and result["num_labelled"] == 48, "only 1 is where it is in both orders"
    assert result["orders"] == {"natural": 1.0}
    names = json.dumps({"class_names": NATURAL})
    assert said == (
        "the teacher has no class names, and its logits are taken in the order of the data's classes: 8.33 % of its "
        "answers are right, which is near chance (8.33 %); in natural order 100.00 %. Its own is the natural order: "
        f"write {names} to {tmp_path}/t.card.json and train in another --workdir"
    )
    _, said = checked(tmp_path, NATURAL, card_names=NATURAL)
    assert said == "", "the logits are brought into the data's order by their names"
    (tmp_path / "t.card.json").write_text("{}")
    assert f"add {names[1:-1]} to {tmp_path}/t.card.json" in checked(tmp_path, NATURAL)[1]


def test_the_order_of_the_data_is_kept_where_it_fits(tmp_path):
    result, said = checked(tmp_path, FOLDERS)
    assert result["accuracy"] == 1.0
    assert said.endswith("the order of the data's classes: 100.00 % of its answers are right; in natural order 8.33 %")


def test_a_teacher_near_chance_in_every_order(tmp_path):
    _, said = checked(tmp_path, FOLDERS[5:] + FOLDERS[:5])
    assert "0.00 % of its answers are right, which is near chance" in said and "in natural order" in said
    assert 'If its own order is another, put the names in that: write {"class_names": ["1", "10"' in said
    _, said = checked(tmp_path, FOLDERS[5:] + FOLDERS[:5], data_names=())
    assert said.endswith("0.00 % of its answers are right, which is near chance (8.33 %)")
    _, said = checked(tmp_path, FOLDERS[5:] + FOLDERS[:5], card_names=FOLDERS)
    assert said.endswith("near chance (8.33 %); is it trained, and is its card right (image_size, mean, std)?")


def test_without_labels_the_order_cannot_be_checked(tmp_path):
    result, said = checked(tmp_path, FOLDERS, labelled=False)
    assert result["accuracy"] is None and result["num_labelled"] == 0 and result["orders"] == {}
    assert "no labels are here to check that; write {" in said


def test_an_earlier_versions_results_are_read(tmp_path):
    result, _ = checked(tmp_path, NATURAL)
    network = weights.Network(Reader(NATURAL), {}, str(tmp_path / "t.pth"))
    old = {name: value for name, value in result.items() if name not in ("orders", "num_labelled")}
    assert class_order.warning(network, old, FOLDERS, "the teacher") == ""


@pytest.mark.full
def test_a_run_says_what_it_assumes_of_a_foreign_file(tiny, tmp_path, capsys):
    model = ModelConfig("cnn", features=(4, 8))
    architecture = weights.ConfigArchitecture(model, 10, 1, 8, Card(8))
    variables = jax.tree.map(lambda x: np.ones(x.shape, np.float32), architecture.abstract_variables())
    arrays = {
        name: torch_writer.tensor(leaf) for name, leaf in weights.arrays_of(Network(architecture, variables)).items()
    }
    checkpoint = {"model_ema": {f"module.{name}": array for name, array in arrays.items()}, "model": arrays}
    (tmp_path / "theirs.ckpt").write_bytes(torch_writer.saved(checkpoint, "zip"))
    tiny.objective.name, tiny.total_steps, tiny.eval_every_steps = "function_matching", 1, 1
    tiny.teacher.path, tiny.teacher.input_std = str(tmp_path / "theirs.ckpt"), (0.25,)
    tiny.teacher.model.name, tiny.teacher.model.features = "cnn", (4, 8)
    train_and_evaluate(test_teacher.resolved(tiny), tmp_path / "run")
    said, path = capsys.readouterr().out, tmp_path / "theirs.ckpt"
    assert f"{path}: the averaged weights (EMA) of its model_ema are used, not those of model\n" in said
    assert (
        f"{path}: std from config.teacher.input_std; mean=(0.5,) assumed, as usual for cnn; "
        "classes assumed to be in the order of the data\n"
    ) in said
    assert "the teacher has no class names" in said and "near chance (10.00 %)" in said, "it knows nothing"


def test_a_run_says_what_it_assumes_of_the_network_that_it_starts_from(tiny, tmp_path, capsys):
    own = weights.load(test_teacher.save_bit(tmp_path / "bit.npz"))
    arrays = {name.removeprefix("params/"): array for name, array in weights.arrays_of(own).items()}
    np.savez(tmp_path / "theirs.npz", **arrays)
    tiny.student.name, tiny.student.features, tiny.student.blocks, tiny.student.width = "bit", (), (1,), 0.125
    tiny.init_from = str(tmp_path / "theirs.npz")
    initial.read(test_teacher.resolved(tiny), tmp_path / "run")
    assert "theirs.npz: mean=(0.5,), std=(0.5,) assumed, as usual for bit; classes" in capsys.readouterr().out


@pytest.mark.full
def test_a_teacher_of_more_classes_is_asked_about_the_datas(tiny, tmp_path):
    tiny.objective.name, tiny.num_classes = "function_matching", 3
    tiny.teacher.path = str(test_teacher.save_bit(tmp_path / "bit.npz"))
    config, mesh = test_teacher.resolved(tiny), sharding.make_mesh()
    (network,) = teachers.read(config, tmp_path)
    view = jnp.asarray(np.random.default_rng(0).random((8, 8, 8, 1)), jnp.float32)
    whole = teacher_logits(teachers.plain(network, config, mesh, test_teacher.CLASSES), view)
    chosen = teacher_logits(teachers.freeze([network], config, mesh, ("7", "2", "5")), view)
    np.testing.assert_allclose(chosen, whole[:, jnp.array([7, 2, 5])], rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="the teacher has no class 'seven' of the data"):
        teachers.freeze([network], config, mesh, ("seven", "2", "5"))
    with pytest.raises(ConfigError, match=r"has 10 classes, config.num_classes=3, and the data name none"):
        teachers.freeze([network], config, mesh, ())
    assert teachers.class_names([network], 3) == (), "ten names are not those of three classes"
    abstract = teachers.abstract([network.architecture], config, mesh)
    assert jax.eval_shape(teacher_logits, abstract, view).shape == (8, 3)

    nameless = network.architecture.with_card(dataclasses.replace(network.architecture.card, class_names=()))
    weights.save(tmp_path / "bit.npz", dataclasses.replace(network, architecture=nameless))
    with pytest.raises(ConfigError, match=r"10 classes, config.num_classes=3, and it does not name them: a card with"):
        teachers.read(config, tmp_path)
    tiny.num_classes = 11
    with pytest.raises(ConfigError, match=r"10 classes, config.num_classes=11$"):
        teachers.read(test_teacher.resolved(tiny), tmp_path)

"""Checks the READMEs: commands run or say why not, code works, links lead somewhere, tables have a sentence above."""

import dataclasses
import importlib.util
import re
import sys
import textwrap

import numpy as np
import pytest
from absl import flags
from PIL import Image
from processes import finish, start_command
from readmes import PAGES, ROOT, Block, blocks, modules
from test_structure import ROOMS
from tiers import cases

from big_distill import cli
from big_distill.config.schema import CompressConfig, SourceConfig
from big_distill.config.template import load_config
from big_distill.data.folders import open_folder
from big_distill.export.formats import FORMATS
from big_distill.export.packing import pack
from big_distill.models import FAMILIES
from big_distill.resolve import resolve
from big_distill.run_dir.metrics import read_metrics
from big_distill.step.objectives import OBJECTIVES
from big_distill.training.loop import train_and_evaluate

# Commands that a test of tests/test_launch.py runs.
ELSEWHERE = {
    ("bash", "launch/local.sh"): "test_local_runs_the_default_config_unless_one_is_named",
    ("bash", "launch/test.sh"): "test_signals_and_the_exit_status_are_pythons",
}
COMMANDS = blocks("bash")
OWN_CODE = {
    match[1]: block.text
    for block in blocks("python")
    if (match := re.match(r"# (my_\w+)\.py, for --config\.", block.text))
}


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    """Writes the files of code of one's own where Python finds them."""
    for name, text in OWN_CODE.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Trains the default job, shrunk, as a stranger's RUN."""
    workdir = tmp_path_factory.mktemp("finished") / "RUN"
    train_and_evaluate(resolve(load_config(ROOT / "configs" / "digits_fm.py", "smoke"), 1, "cpu"), workdir)
    return workdir


@pytest.fixture(scope="session")
def place(finished, tmp_path_factory):
    """Makes a directory where the commands run, with RUN and PHOTOS, whose 40 images are in two classes."""
    place = tmp_path_factory.mktemp("place")
    for folder in ("configs", "launch", "tests"):
        (place / folder).symlink_to(ROOT / folder)
    (place / "RUN").symlink_to(finished)
    rng = np.random.default_rng(0)
    for name in ("daisy", "rose"):
        (place / "PHOTOS" / name).mkdir(parents=True)
        for index in range(20):
            Image.fromarray(rng.integers(0, 256, (70, 64, 3), np.uint8)).save(place / "PHOTOS" / name / f"{index}.jpg")
    return place


def filled_in(words, num_examples):
    """Replaces the placeholders K and N."""
    return [re.sub(r"=N$", f"={num_examples}", re.sub(r"=K$", "=2", word)) for word in words]


def shrunk(words):
    """Adds `:smoke` to the config of a training command."""
    if "big_distill.main" in words:
        for index, word in enumerate(words):
            if word.startswith("--config=") and "smoke" not in word:
                words[index] = f"{word}{',' if ':' in word else ':'}smoke"
    return words


def marked(block):
    """Leaves to --all the commands of all pages but the main one, and a BiT and a report, which take half a minute."""
    often = block.page == ROOT / "README.md" and not re.search("flowers64_fm|report", block.text)
    return pytest.param(block, id=str(block), marks=() if often else pytest.mark.full)


@pytest.mark.parametrize("block", [marked(block) for block in COMMANDS if not block.reason])
def test_commands_run(block: Block, place):
    for words in block.commands:
        if next(other for other in COMMANDS if not other.reason and words in other.commands) is not block:
            continue  # another page has it, too
        if test := ELSEWHERE.get(tuple(words)):
            assert f"def {test}(" in (ROOT / "tests" / "test_launch.py").read_text()
            continue
        photos = SourceConfig(name="folder", path=str(place / "PHOTOS"))
        program, *arguments = shrunk(filled_in(words, open_folder(photos, "train").num_examples))
        program = sys.executable if program == "python" else program
        status, out, err = finish(start_command(program, *arguments, cwd=place, PYTHONPATH=str(ROOT)))
        assert status == 0 and out, err


def assert_flags(words):
    """Checks that a command's program and flags are there, by the texts that define them."""
    if words[0] == "bash":
        texts = [(ROOT / words[1]).read_text(), (ROOT / "launch" / "common.sh").read_text()]
    elif "-m" in words and words[words.index("-m") + 1].startswith("big_distill."):
        name = words[words.index("-m") + 1].removeprefix("big_distill.")
        texts = [(ROOT / "big_distill" / f"{part}.py").read_text() for part in (name, "cli")]
    else:
        return
    if words[:2] != ["bash", "launch/test.sh"]:  # its flags are pytest's
        own = words[: words.index("--")] if "--" in words else words
        for flag in re.findall(r"--(\w+)", " ".join(own)):
            assert flag == "config" or any(re.search(rf'"{flag}"|--{flag}\b', text) for text in texts), flag


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in COMMANDS if block.reason])
def test_commands_that_do_not_run_resolve(block, own_code, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in block.commands:
        assert_flags(words)
        if "big_distill.main" in words:
            values = flags.FlagValues()
            arguments = ["main", *(word for word in filled_in(words, 900) if re.match(r"--(no)?config\b", word))]
            cli.define_config_flag(values, arguments)
            cli.parse_flags(arguments, values)
            assert resolve(values.config, 1, "cpu").total_steps > 0


@pytest.mark.full
def test_a_run_on_photos_is_packed_on_its_own_test_split(tiny, place, tmp_path):
    """Its data have no split of the name 'test'."""
    tiny.source.update(
        name="folder", path=str(place / "PHOTOS"), train="train[:90%]", validation=None, test="train[90%:]"
    )
    tiny.num_classes, tiny.source.num_train_examples, tiny.batch_size = 2, 36, 8
    train_and_evaluate(resolve(tiny, 1, "cpu"), tmp_path / "run")
    for module in ("big_distill.pack", "big_distill.evaluate"):
        status, out, err = finish(start_command(sys.executable, "-m", module, f"--workdir={tmp_path / 'run'}"))
        assert status == 0 and "accuracy" in out, err


def test_there_are_commands_of_both_kinds():
    assert len([block for block in COMMANDS if block.reason]) > 15
    assert len([block for block in COMMANDS if not block.reason]) > 15


def test_there_is_own_code_for_each_field():
    assert set(OWN_CODE) == {"my_losses", "my_data", "my_nets", "my_hints"}
    for field in ("objective", "student", "source"):
        assert any(
            re.match(rf"# my_\w+\.py, for --config\.{field}\.name=my_\w+:\w+", text) for text in OWN_CODE.values()
        )


@pytest.mark.parametrize("objective", cases("my_hints:fitnets", full=["my_losses:huber"]))
def test_own_objectives(distilled, own_code, tmp_path, objective):
    distilled.objective.name = objective
    train_and_evaluate(resolve(distilled, 1, "cpu"), tmp_path / "run")
    losses = [line["train/loss"] for line in read_metrics(tmp_path / "run") if "train/loss" in line]
    assert len(losses) == 6 and np.isfinite(losses).all()


def test_own_data_and_network(tiny, own_code, tmp_path):
    tiny.source.name, tiny.source.num_train_examples, tiny.num_classes = "my_data:load", 60, 3
    tiny.student.name, tiny.student.features = "my_nets:perceptron", ()
    summary = train_and_evaluate(resolve(tiny, 1, "cpu"), tmp_path / "run")
    assert summary["student"]["num_params"] == 64 * 16 + 16 + 16 * 3 + 3
    (row,) = pack(tmp_path / "run", ["container"], "final", "validation")
    assert row["accuracy"] == summary["student"]["accuracy"]


@pytest.mark.parametrize("block", [b for b in blocks("python") if "big_distill.load" in b.text], ids=str)
def test_loading_works(block, finished):
    pack(finished, ["container"], "final", "test", precision="int8")
    image = np.zeros((8, 8, 1), np.uint8)
    names = {"image": image, "another": image}
    exec(textwrap.dedent(block.text).replace("RUN", str(finished)), names)
    assert names["network"].predict([image]).shape == (1, 10)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_can_be_read(page):
    """Its links lead somewhere, and a sentence stands above each table."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for above in re.findall(r"^(.*)\n\n?\|.*\n\|[-|]+\|$", text, re.MULTILINE):
        assert above.rstrip().endswith((".", ":")), f"the table below {above!r}"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("big_distill/step/README.md", list(OBJECTIVES)),
        ("big_distill/models/README.md", list(FAMILIES)),
        ("big_distill/export/README.md", list(FORMATS)),
        ("big_distill/compress/README.md", [field.name for field in dataclasses.fields(CompressConfig)]),
        ("configs/README.md", [path.stem for path in (ROOT / "configs").glob("*.py")]),
        ("launch/README.md", [path.name for path in (ROOT / "launch").glob("*.sh")]),
    ],
)
def test_a_page_names_all_that_there_is(page, names):
    text = (ROOT / page).read_text()
    assert names and not [name for name in names if not re.search(rf"`{re.escape(name)}\b", text)]


def test_the_main_page_has_three_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_pictures_are_what_their_script_draws(tmp_path):
    """Words and numbers are compared, for the places of lines follow the fonts."""
    spec = importlib.util.spec_from_file_location("pictures", ROOT / ".github" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    pictures.main(tmp_path)
    drawn = sorted(tmp_path.glob("*.svg"))
    assert [path.stem for path in drawn] == ["headline", "rooms", "step"]
    for path in drawn:
        words = re.findall(r">([^<>\n]+)</text>", path.read_text())
        assert words and words == re.findall(r">([^<>\n]+)</text>", (ROOT / ".github" / path.name).read_text())
    assert [names for _, rooms in pictures.LAYERS for names, _ in rooms] == ROOMS


def test_every_module_is_listed():
    """`python tests/readmes.py` writes the list again."""
    assert (ROOT / "big_distill" / "README.md").read_text().endswith(modules())

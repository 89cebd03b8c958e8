"""Checks the structure of the package: which module may import which."""

import ast
import functools
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "big_distill"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}

# Top first. A module imports only from its own room or from a room below, and there are no circles.
ROOMS = [
    "main evaluate prepare pack sensitivity doctor plan report",
    "cli",
    "reporting",
    "planning",
    "export",
    "training",
    "resolve",
    "teacher",
    "weights",
    "compress",
    "run_dir",
    "models",
    "step",
    "parallel",
    "data",
    "config_files config",
    "files",
    "state errors terminal",
]
OWNERS = {  # only these may import it
    "flax.linen": ("models.",),
    "grain": ("data.", "prepare"),
    "nvidia": ("data.jpeg_parts",),
    "tensorflow_datasets": ("data.", "prepare"),
    "ml_collections": ("config.template", "resolve", "cli"),
    "orbax": ("run_dir.checkpoints",),
    "clu.metric_writers": ("run_dir.metrics",),
    "clu.periodic_actions": ("run_dir.metrics",),
    "ai_edge_litert": ("export.",),
    "onnx": ("export.",),
    "onnxruntime": ("export.",),
    "tensorflow": ("export.",),
    "jinja2": ("reporting.",),
    "matplotlib": ("reporting.",),
    "torch": (),
}


@functools.cache
def imports(path):
    """Returns the absolute names of all that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room(module):
    return next(i for i, names in enumerate(ROOMS) if module.split(".")[1] in names.split())


def targets(module):
    """Returns the modules of the package that a module imports."""
    found = {name if name in MODULES else name.rpartition(".")[0] for name in imports(MODULES[module])}
    return {name for name in found if name in MODULES and name not in ("big_distill", module)}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_nothing_imports_upward(module):
    if module == "big_distill":  # it imports `load` only when that is first used
        return
    for name in imports(MODULES[module]):
        if name.startswith("big_distill."):
            assert room(module) <= room(name), f"{module} imports {name}"


def test_no_circles():
    graph = {module: targets(module) for module in MODULES if module != "big_distill"}
    while graph:
        leaves = {module for module, below in graph.items() if not below & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {module: below for module, below in graph.items() if module not in leaves}


def test_training_needs_no_exporter_no_planner_and_no_report():
    closure, ahead = set(), {"big_distill.main"}
    while ahead:
        closure |= ahead
        ahead = set().union(*map(targets, ahead)) - closure
    assert len(closure) > 40
    assert not [name for name in closure if name.split(".")[1] in ("export", "planning", "reporting")]


def test_the_promises_name_tests_that_exist():
    tests = PACKAGE.parent / "tests"
    page = (tests / "faults" / "README.md").read_text()
    functions = re.findall(r"`(test_\w+)`", page)
    written = "".join(path.read_text() for path in tests.rglob("test_*.py"))
    assert len(functions) > 20 and not [name for name in functions if f"def {name}(" not in written]
    files = re.findall(r"`(test_[\w*]+\.py)`", page)
    assert files and all(list(tests.rglob(name)) for name in files)


def test_the_readme_shows_the_rooms_in_their_order():
    tree = (PACKAGE.parent / "README.md").read_text().partition("```text\nbig_distill/\n")[2].partition("```")[0]
    shown = [re.match(r"  (\w+)", line) for line in tree.splitlines()]
    names = [match[1] for match in shown if match]
    assert [room(f"big_distill.{name}") for name in names] == list(range(len(ROOMS)))


def test_the_readme_lists_the_commands():
    page = (PACKAGE.parent / "README.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == ROOMS[0].split()
    for name in ROOMS[0].split():
        functions = {
            node.name for node in ast.parse(MODULES[f"big_distill.{name}"].read_text()).body if hasattr(node, "name")
        }
        assert {"define_flags", "main"} <= functions


@pytest.mark.parametrize("package", OWNERS)
def test_one_room_owns_each_dependency(package):
    for module, path in MODULES.items():
        inside = module.removeprefix("big_distill").removeprefix(".") + ("." if path.name == "__init__.py" else "")
        if any(name == package or name.startswith(f"{package}.") for name in imports(path)):
            assert inside.startswith(OWNERS[package]) and OWNERS[package], f"{module} imports {package}"

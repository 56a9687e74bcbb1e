"""Modules import one way: the core knows nothing of the study, and needs torch and transformers alone."""

import ast
import subprocess
import sys

import pytest

from idsel_core.backbones import BACKBONES
from idsel_core.methods import METHODS
from tests.support.imports import cycles, graph, imported, modules, name_of
from tests.support.project import PROJECT

CORE = {name: path for name, path in modules("idsel_core").items() if not name.startswith("idsel_core.study")}
OF_THE_STUDY = [
    "accelerate",
    "bitsandbytes",
    "jupytext",
    "matplotlib",
    "mistune",
    "nbformat",
    "onnx",
    "pandas",
    "papermill",
    "pyarrow",
    "scipy",
    "seaborn",
    "skimage",
    "sklearn",
    "snakemake",
    "tabulate",
]
"""Packages that the core does without."""
FASTER = {"idsel_core.selection.gpu_triton"}
"""Modules that are imported where their compiler is installed."""

ALONE = """
import importlib, sys
from importlib.machinery import PathFinder

hidden = set({hidden})
find = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in hidden else find(name, path, target)

PathFinder.find_spec = find_spec
for name in {names}:
    importlib.import_module(name)
import idsel_core
for name in idsel_core.__all__:
    getattr(idsel_core, name)
found = hidden & {{name.partition(".")[0] for name in sys.modules}}
assert not found, found
assert "idsel_core.study" not in sys.modules
print(len(idsel_core.list_methods()))
"""


def test_nothing_outside_the_study_imports_it():
    found = {name: imported(path) for name, path in CORE.items()}
    assert [name for name, names in found.items() if any(one.startswith("idsel_core.study") for one in names)] == []


def test_the_core_names_no_package_of_the_study():
    found = {name: {one.partition(".")[0] for one in imported(path)} for name, path in CORE.items()}
    assert {name: names & {*OF_THE_STUDY} for name, names in found.items() if names & {*OF_THE_STUDY}} == {}


def test_the_core_imports_without_the_packages_of_the_study():
    """In a process that finds none of them, as where they are not installed."""
    code = ALONE.format(hidden=OF_THE_STUDY, names=sorted(CORE.keys() - FASTER))
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(METHODS)


def test_no_modules_import_each_other_in_a_circle():
    assert cycles(graph("idsel_core")) == []


@pytest.mark.parametrize(
    ("folder", "registered"), [("methods", METHODS), ("backbones", BACKBONES)], ids=["methods", "backbones"]
)
def test_a_folder_holds_one_file_for_each_registered_class_and_nothing_else(folder, registered):
    home = PROJECT / "idsel_core" / folder
    files = {name_of(path) for path in home.glob("*.py")} - {f"idsel_core.{folder}"}
    assert files == {one.__module__ for one in registered.values()}
    rest = {path.name for path in home.iterdir() if path.suffix != ".py"} - {"__pycache__"}
    assert rest <= {"_shared", "in_llm", "relevance"}


def test_each_file_of_methods_holds_one_method():
    assert len({method.__module__ for method in METHODS.values()}) == len(METHODS)
    for name in {method.__module__ for method in METHODS.values()}:
        tree = ast.parse(CORE[name].read_text())
        public = [node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"]
        assert len(public) == 1, (name, public)


def test_no_test_imports_a_test():
    tests = {name for name in modules("tests") if name.rpartition(".")[2].startswith("test_")}
    found = {name: imported(path) & tests for name, path in modules("tests").items()}
    assert {name: names for name, names in found.items() if names} == {}


def loaded(code: str) -> set[str]:
    """Return the packages that a new process has imported after running some code."""
    tell = 'import sys; print(*{name.partition(".")[0] for name in sys.modules})'
    done = subprocess.run([sys.executable, "-c", f"{code}\n{tell}"], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_selection_imports_torch_and_nothing_more():
    select = "from idsel_core.selection import id_select\nid_select(torch.eye(5), torch.ones(5), 2)"
    assert loaded(f"import torch\n{select}") - loaded("import torch, numpy.typing") <= {"idsel_core", "lazy_loader"}


def test_pruning_imports_nothing_of_the_study():
    prune = """
from idsel_core import IDSelection, prune
from tests.support import tiny
model, inputs = tiny.build(), tiny.prompts((1,))
with prune(model, IDSelection(8)) as run:
    model(**inputs)
assert run.report
"""
    assert not loaded(prune) & {"pandas", "matplotlib", "seaborn", "pyarrow", "snakemake", "papermill"}

"""Every test is run by one of the make targets, and every module has a fast test."""

import ast
import re
from pathlib import Path

from tests.support.imports import imported, modules
from tests.support.project import PROJECT

TARGETS = {"test", "test-all", "test-slurm", "test-browser"}
KNOWN = modules("idsel_core")
SLOW_FILES = {
    "project/test_wheel.py",
    "study/run/test_sweep_faults.py",
    "study/run/test_slurm.py",
    "browser/test_explorer.py",
}
"""Files of slow tests alone."""


def expressions() -> dict[str, str]:
    """Return which marks each make target asks pytest for."""
    rules = re.findall(r"^([\w-]+):[^=\n]*\n((?:\t.*\n)+)", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    found = {
        target: re.search(r"""(?:PYTEST|pytest).* -m ("[\w ]+"|'[\w ]+'|[a-z]+)""", recipe) for target, recipe in rules
    }
    return {target: match[1].strip("\"'") for target, match in found.items() if match and target in TARGETS}


def marks(item) -> dict[str, bool]:
    """Return which of the marks that the make targets ask for a test has."""
    return {mark: item.get_closest_marker(mark) is not None for mark in ("slow", "slurm", "browser")}


def test_make_targets_run_each_test_once(collected):
    asked = expressions()
    assert set(asked) == TARGETS
    for item in collected:
        runs = [target for target, expression in asked.items() if eval(expression, {}, marks(item))]
        assert len(runs) == 1, (item.nodeid, runs)


def test_each_file_of_tests_has_a_fast_test(collected):
    fast = {item.path for item in collected if not any(marks(item).values())}
    files = {item.path for item in collected}
    slow = {path.relative_to(PROJECT / "tests").as_posix() for path in files - fast}
    assert slow <= SLOW_FILES


def named(path: Path) -> set[str]:
    """Return the dotted names in the strings of a file, as subprocesses and imports by name have them."""
    texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    found = {name for text in texts if isinstance(text, str) for name in re.findall(r"idsel_core(?:\.\w+)+\.?", text)}
    # A name that ends in a dot is the beginning of a name that is put together.
    members = {one for name in found if name[-1] == "." for one in KNOWN if one.startswith(name)}
    return members | {one for name in found for one in KNOWN if name == one or name.startswith(f"{one}.")}


def test_each_module_has_a_fast_test(collected):
    """A file with fast tests imports the module, or something that imports it does; notebooks are run by fast tests."""
    new = {item.path for item in collected if not any(marks(item).values())}
    new |= {*(PROJECT / "notebooks").glob("*.py"), *(PROJECT / "tests/support").glob("*.py")}
    reached: set[str] = set()
    while new:
        found = set().union(*(imported(path) | named(path) for path in new)) & KNOWN.keys()
        new = {KNOWN[name] for name in found - reached}
        reached |= found
    assert {name for name, path in KNOWN.items() if path.name != "__init__.py"} - reached == set()

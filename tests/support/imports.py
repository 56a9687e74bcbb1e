"""What the modules of the package and of the tests import, read from their source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.project import PROJECT


def name_of(path: Path) -> str:
    """Return the dotted name of a module of the project."""
    parts = path.relative_to(PROJECT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules(package: str) -> dict[str, Path]:
    """Return the files of a package or folder, by dotted name."""
    return {name_of(path): path for path in sorted((PROJECT / package.replace(".", "/")).rglob("*.py"))}


def imported(path: Path, only_at_import: bool = False) -> set[str]:
    """Return the dotted names that a file imports.

    ``from a import b`` gives ``a`` and ``a.b``. With `only_at_import`, leave out what functions import, and what is for
    type checkers alone.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in _at_import(tree) if only_at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = name_of(path).split(".")
                package = package if path.name == "__init__.py" else package[:-1]
                source = ".".join([*package[: len(package) - node.level + 1], *filter(None, [source])])
            found |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return found


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from _at_import(child)


@cache
def graph(package: str) -> dict[str, set[str]]:
    """Return which modules of a package each of its modules imports when it is imported itself."""
    known = modules(package)
    edges = {}
    for name, path in known.items():
        found = imported(path, only_at_import=True) & known.keys()
        # ``from a import b`` of a module b needs a package a only to find b.
        packages = {one for one in found if known[one].name == "__init__.py"}
        names = {one: _names_taken(path, one) for one in packages}
        edges[name] = {one for one in found if one not in packages or names[one] - known.keys()} - {name}
    return edges


def _names_taken(path: Path, package: str) -> set[str]:
    """Return the dotted names that a file takes from a package when it is imported."""
    taken = set()
    for node in _at_import(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            taken |= {f"{package}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            taken |= {alias.name for alias in node.names if alias.name == package}
    return taken


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return groups of modules that import each other in a circle, each sorted."""
    reached: dict[str, set[str]] = {}
    for start in edges:
        seen, stack = set(), [start]
        while stack:
            for one in edges[stack.pop()] - seen:
                seen.add(one)
                stack.append(one)
        reached[start] = seen
    groups = {tuple(sorted(b for b in seen if a in reached[b])) for a, seen in reached.items() if a in seen}
    return [list(group) for group in sorted(groups)]

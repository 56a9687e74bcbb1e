"""The tables of papers: grids of sweeps in config/paper, and what is known of their tasks and models."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from transformers import PreTrainedConfig

from idsel_core.hints import did_you_mean
from idsel_core.loading.random_models import CONFIGS, read_architecture
from idsel_core.study.paths import PACKAGE, PROJECT
from idsel_core.study.run.notebook_runner import load_parameters

TABLES: Final = PROJECT / "config/paper"
"""Folder of the tables, one grid a file, and of what is known of the tasks."""

_OWN: Final = "idsel_"
_OWN_TASKS: Final = PACKAGE / "study/harness/tasks"
"""Beginning of the names of the tasks that lmms-eval lacks, and the folder of their YAML files."""


def list_tables(folder: Path = TABLES) -> dict[str, str]:
    """Return the name of each table and what it is, the first comment of its file."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        first = path.read_text().split("\n", 1)[0]
        found[path.stem] = first.removeprefix("#").strip()
    return found


def table_file(name: str, folder: Path = TABLES) -> Path:
    """Return the file of a table.

    Raises
    ------
    ValueError
        If there is none of this name; names those that there are.
    """
    known = list(list_tables(folder))
    if name not in known:
        raise ValueError(f"no table {name!r}{did_you_mean(name, known, ';')} there are {', '.join(known) or 'none'}")
    return folder / f"{name}.yaml"


def limited(path: Path, limit: int, folder: Path = Path(".cache/paper")) -> Path:
    """Write a grid with fewer questions under a name of its own, so that its rows stay apart, and return its path."""
    if not limit:
        return path
    grid = load_parameters(path) | {"questions": limit}
    target = folder / f"{path.stem}-{limit}.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"# {limit} questions of each data set of {path}\n" + yaml.safe_dump(grid, sort_keys=False))
    return target


def read_tasks(folder: Path = TABLES) -> dict[str, dict[str, int]]:
    """Return questions, images and most tokens of an answer (`new_tokens`) for the tasks that are known.

    Tasks of this project say in their own YAML files how many tokens an answer has; the table has those of lmms-eval.
    """
    found = {}
    with (folder / "tasks.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            name = row.pop("task")
            if name.startswith(_OWN):
                row["new_tokens"] = str(_own_task(name)["generation_kwargs"]["max_new_tokens"])
            found[name] = {column: int(text) for column, text in row.items()}
    return found


def task_size(data: str, tasks: Mapping[str, Mapping[str, int]], limit: int = 0) -> dict[str, int]:
    """Return what `read_tasks` says of a data set of a grid, at most `limit` questions and images of it.

    Raises
    ------
    ValueError
        If its size is not known.
    """
    name = data.removeprefix("lmms:")
    if name not in tasks:
        raise ValueError(
            f"the size of {data} is not known; add it to config/paper/tasks.csv, which has {', '.join(tasks)}"
        )
    task = dict(tasks[name])
    return task | {what: min(limit or task[what], task[what]) for what in ("questions", "images")}


def published(backbone: str) -> tuple[PreTrainedConfig, int]:
    """Return the configuration and the number of parameters of a published checkpoint, without a download.

    Raises
    ------
    ValueError
        If its configuration does not come with the package.
    """
    with (CONFIGS / "published.csv").open(newline="") as file:
        rows = {row["checkpoint"]: row for row in csv.DictReader(file)}
    if backbone not in rows:
        raise ValueError(f"the sizes of {backbone} are not known here; known are {', '.join(rows)}")
    return read_architecture(rows[backbone]["name"]), int(rows[backbone]["parameters"])


class _Loader(yaml.SafeLoader):
    """Reads files of lmms-eval, whose tag ``!function`` names functions."""


def _function_name(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
    return loader.construct_scalar(node)


_Loader.add_constructor("!function", _function_name)


def _own_task(name: str) -> dict[str, Any]:
    text = (_OWN_TASKS / f"{name.removeprefix(_OWN)}.yaml").read_text()
    task: dict[str, Any] = yaml.load(text, Loader=_Loader)
    return task

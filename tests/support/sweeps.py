"""A project whose sweep is quick: fixtures of what it is before and after, for all files with tests of sweeps."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml

from idsel_core.study.paths import DATA
from idsel_core.study.run.sweeps import NOTEBOOK, encodings
from tests.support import small
from tests.support.kills import leftovers
from tests.support.small import PROJECT, command, environment, write_notebook

GRID = {
    "backbone": "model",
    "split": "hard",
    "method": ["full", "topk", "random"],
    "budget": [64, [32, 16]],
    "seed": [0, 1],
    "data": "data",
    "questions": 7,
}

# Stands in for the evaluation; `fail`, `wait` and `die` are files that tests make.
WORK = """
import os
import signal
import time
from pathlib import Path
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from tests.support.rows import make_rows

if method == "topk" and Path("fail").exists():
    raise RuntimeError("no luck with topk")
while method == "random" and Path("wait").exists():
    time.sleep(0.05)
if method == "full" and Path("die").exists():
    Path("die").unlink()
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
rows = make_rows(budgets=tuple(map(float, budgets or [576])), method=method)
note = provenance({"backbone": backbone, "method": method}, device=device, started=time.perf_counter() - 2)
Results(results_dir).write(job, rows.assign(seed=knobs.get("seed", 0)), note)
"""


def write_grid(folder: Path, **changes: object) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(GRID | changes))
    return path


def sweep(project: Path, *more: str, **environ: str) -> subprocess.CompletedProcess:
    return small.sweep(project, *more, environ=environment(**environ))


def stamps(project: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in project.glob("results/sweeps/grid/*.parquet")}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    project = tmp_path_factory.mktemp("sweep") / "fresh"
    for folder in ("notebooks", "data", "model"):
        (project / folder).mkdir(parents=True)
    for folder in ("config", "idsel_core", "workflow"):
        shutil.copytree(PROJECT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (PROJECT / DATA).glob("hard-*.parquet"):
        shutil.copy(path, project / "data")
    (project / "model/model.safetensors").touch()
    (project / "model/config.json").write_text('{"model_type": "llava"}')
    parameters = nbformat.read(PROJECT / NOTEBOOK, as_version=4).cells[1].source
    write_notebook(project / NOTEBOOK, parameters, WORK)
    write_grid(project)
    encoding = project / encodings("model", "data") / "hard.safetensors"
    encoding.parent.mkdir(parents=True)
    encoding.touch()
    return project


@pytest.fixture(scope="module")
def finished(fresh):
    project = shutil.copytree(fresh, fresh.with_name("finished"))
    done = sweep(project)
    assert done.returncode == 0, done.stderr
    return project, done


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "project")


def same(project: Path, finished: tuple) -> bool:
    assert leftovers(project) == []
    return small.same(project, finished[0])


@contextlib.contextmanager
def waiting(project: Path) -> Iterator[subprocess.Popen]:
    """Run a sweep until one of its jobs waits for the file "wait" to go; kill what is left of it at the end."""
    (project / "wait").touch()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(command(), cwd=project, env=environment(), start_new_session=True, **quiet)
    try:
        deadline = time.monotonic() + 600
        while not list(project.glob("logs/grid/random-*.ipynb")):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.1)
        yield run
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()

"""The workflow, on a small project with notebooks of its own: runs, resumes, and keeps what a failure leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from idsel_core.study.run.workflow import code_files, read_workflow
from idsel_core.study.store.results import Results
from tests.support.project import PROJECT
from tests.support.small import disk, write_notebook

PARAMETERS = """
results_dir = "results/rows"  # the store
budgets = [64.0, 16.0]   # tokens kept
fail = False             # raise in mid-way
wait_for = ""            # a file that must be there before rows are written
"""

ROWS = """
import time
from pathlib import Path
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from tests.support.rows import make_rows

if fail:
    raise RuntimeError("no luck with " + str(budgets))
while wait_for and not Path(wait_for).exists():
    time.sleep(0.05)
Results(results_dir).write("{name}", make_rows(budgets=tuple(budgets)), provenance({{"budgets": budgets}}))
print("wrote", len(budgets), "budgets")
"""

DRAWING = """
import seaborn as sns
from pathlib import Path
from idsel_core.study.store.results import Results

rows = Results(results_dir).frame()
Path("results/figures").mkdir(parents=True, exist_ok=True)
sns.pointplot(rows, x="budget", y="correct", hue="job").figure.savefig("results/figures/budget.png")
"""


FIGURES = [sys.executable, "-m", "idsel_core.study.cli", "figures", "--cores", "2"]
CODE = yaml.safe_load((PROJECT / "config/workflow.yaml").read_text())["code"]


def configure(project: Path, name: str, **parameters: object) -> None:
    (project / f"config/{name}.yaml").write_text(yaml.safe_dump(parameters))


def environment() -> dict[str, str]:
    # The small project's own copy of idsel_core comes first, being the working folder.
    return os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def figures(project: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*FIGURES, *more],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def stamps(project: Path) -> dict[str, int]:
    made = [*project.glob("results/rows/*.parquet"), *project.glob("results/figures/*"), *project.glob("logs/*")]
    return {path.name: path.stat().st_mtime_ns for path in made}


def changed(before: dict[str, int], after: dict[str, int]) -> list[str]:
    return sorted(name for name in before | after if before.get(name) != after.get(name))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    project = tmp_path_factory.mktemp("workflow") / "fresh"
    for folder in ("notebooks", "config", "data"):
        (project / folder).mkdir(parents=True)
    for folder in ("idsel_core", "workflow"):
        shutil.copytree(PROJECT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "config/workflow.yaml").write_text(
        yaml.safe_dump(
            {
                "jobs": {"a": [], "b": []},
                "splits": [],
                "model": [],
                "code": CODE,
                "drawing": {"notebook": "draw", "outputs": ["results/figures/budget.png"]},
            }
        )
    )
    for name in ("a", "b"):
        write_notebook(project / f"notebooks/{name}.ipynb", PARAMETERS, ROWS.format(name=name))
        configure(project, name)
    write_notebook(project / "notebooks/draw.ipynb", PARAMETERS, DRAWING)
    configure(project, "draw")
    shutil.copy(PROJECT / ".gitignore", project)
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet"], ["add", "-A"], [*author, "commit", "--quiet", "-m", "Begin"]):
        subprocess.run(["git", *command], cwd=project, check=True)
    return project


@pytest.fixture(scope="module")
def finished(fresh):
    project = shutil.copytree(fresh, fresh.with_name("finished"))
    done = figures(project)
    assert done.returncode == 0, done.stderr
    return project, done


@pytest.fixture
def project(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / "project")


def test_a_run_makes_everything_and_says_where(finished):
    project, done = finished
    assert sorted(stamps(project)) == ["a.ipynb", "a.parquet", "b.ipynb", "b.parquet", "budget.png", "draw.ipynb"]
    assert Results(project / "results/rows").jobs() == ["a", "b"]
    assert "results/figures/: budget.png" in done.stdout
    assert "a: wrote 2 budgets" in done.stderr
    assert "4 of 4 steps (100%) done" in done.stderr
    timing = yaml.safe_load((project / "results/timing.json").read_text())
    assert timing["cores"] == 2
    assert f"Took {timing['seconds']} s" in done.stdout


def test_a_run_leaves_the_checkout_clean(finished):
    project, _ = finished
    shown = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True)
    assert shown.stdout == ""


def test_a_dry_run_tells_what_would_run_and_writes_nothing(project, tmp_path):
    configure(project, "b", budgets=[32.0])
    before = everything(project)
    done = figures(project, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "run notebooks/b.ipynb" in done.stdout + done.stderr
    assert "run notebooks/a.ipynb" not in done.stdout + done.stderr
    assert everything(project) == before


@pytest.mark.parametrize("path", ["docs/rows/speech.parquet", "data/backbone/train.log.jsonl"])
def test_figures_are_drawn_again_where_committed_rows_or_logs_change(project, path):
    (project / path).parent.mkdir(parents=True)
    (project / path).write_text("new")
    done = figures(project, "--dry-run")
    assert "draw figures and tables with notebooks/draw.ipynb" in done.stdout + done.stderr
    assert "run notebooks/a.ipynb" not in done.stdout + done.stderr


def everything(project: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in project.rglob("*") if "__pycache__" not in path.parts}


def test_what_results_depend_on_is_said_by_folders_that_are_there():
    workflow = read_workflow(PROJECT / "config/workflow.yaml")
    files = {kind: set(code_files(kind, workflow, PROJECT)) for kind in workflow["code"]}
    measured = {"idsel_core/study/store/results.py", "idsel_core/scores/attention_rows.py", "idsel_core/study/knobs.py"}
    assert measured <= files["rows"] < files["times"]
    assert "idsel_core/scores/attention_rows.py" in files["encodings"] < files["rows"]
    assert "idsel_core/study/timing/clock.py" in files["times"] - files["rows"]
    for folder in ("report", "run", "commands"):
        assert not [name for name in files["times"] if name.startswith(f"idsel_core/study/{folder}/")]
    assert "idsel_core/study/cli.py" not in files["times"]
    assert files["figures"] and all(name.startswith("idsel_core/study/report/") for name in files["figures"])


@pytest.mark.slow
def test_a_second_run_redoes_only_what_changed(project):
    before = stamps(project)
    timing = (project / "results/timing.json").read_text()
    os.utime(project / "notebooks/a.ipynb")
    done = figures(project)
    assert done.returncode == 0, done.stderr
    assert changed(before, stamps(project)) == []

    configure(project, "b", budgets=[32.0])
    done = figures(project)
    assert done.returncode == 0, done.stderr
    assert changed(before, stamps(project)) == ["b.ipynb", "b.parquet", "budget.png", "draw.ipynb"]
    assert Results(project / "results/rows").frame("b")["budget"].unique().tolist() == [32.0]
    assert (project / "results/timing.json").read_text() == timing


@pytest.mark.slow
def test_code_that_rows_depend_on_redoes_them_and_code_of_figures_does_not(project):
    before = stamps(project)
    with (project / "idsel_core/study/report/theme.py").open("a") as file:
        file.write("# changed\n")
    assert figures(project).returncode == 0
    assert changed(before, stamps(project)) == ["budget.png", "draw.ipynb"]
    with (project / "idsel_core/study/store/results.py").open("a") as file:
        file.write("# changed\n")
    assert figures(project).returncode == 0
    assert changed(before, stamps(project)) == sorted(before)


@pytest.mark.slow
def test_a_failing_notebook_leaves_its_executed_copy_and_the_others_go_on(project):
    configure(project, "a", fail=True)
    configure(project, "b", budgets=[32.0])
    done = figures(project)
    assert done.returncode != 0
    assert "a.ipynb failed in cell 3: RuntimeError: no luck with [64.0, 16.0]" in done.stderr
    executed = nbformat.read(project / "logs/a.ipynb", as_version=4)
    assert any(output.output_type == "error" for cell in executed.cells for output in cell.get("outputs", []))
    assert Results(project / "results/rows").jobs() == ["b"]

    before = stamps(project)
    configure(project, "a")
    done = figures(project)
    assert done.returncode == 0, done.stderr
    assert changed(before, stamps(project)) == ["a.ipynb", "a.parquet", "budget.png", "draw.ipynb"]


@pytest.mark.slow
def test_a_truncated_parquet_is_named_with_the_remedy_and_built_again(project, finished):
    path = project / "results/rows/b.parquet"
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-100])
    # As a crash leaves it, so that nothing looks newer than it is.
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    before = stamps(project)
    done = figures(project)
    assert done.returncode == 2
    assert "error: results/rows/b.parquet cannot be read" in done.stderr
    assert "delete results/rows/b.parquet and run `make figures`" in done.stderr
    assert changed(before, stamps(project)) == []
    path.unlink()
    done = figures(project)
    assert done.returncode == 0, done.stderr
    assert {"a.parquet", "a.ipynb"}.isdisjoint(changed(before, stamps(project)))
    equal(project, finished[0])


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_store_lose_nothing(fresh, finished, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "full")
    with disk(project / "results/rows", "size=8k") as remount:
        done = figures(project)
        assert done.returncode != 0
        assert "No space left on device" in done.stderr
        remount("size=8m,ro")
        done = figures(project)
        assert done.returncode == 2
        assert "results/rows: rows could not be stored: the folder cannot be written to" in done.stderr
        remount("rw")
        done = figures(project)
        assert done.returncode == 0, done.stderr
        equal(project, finished[0])


def equal(project: Path, undisturbed: Path) -> None:
    assert list(project.glob("results/**/.*")) == []
    stores = [Results(folder / "results/rows").frame() for folder in (project, undisturbed)]
    pd.testing.assert_frame_equal(*stores, check_exact=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"budget": [1.0]}, "has no parameter 'budget', did you mean 'budgets'?"),
        ({"budgets": 64.0}, "allowed is list"),
    ],
)
@pytest.mark.slow
def test_wrong_parameters_stop_the_run_before_anything_is_lost(project, wrong, message):
    before = stamps(project)
    configure(project, "b", **wrong)
    done = figures(project)
    assert done.returncode != 0
    assert message in done.stderr
    assert changed(before, stamps(project)) == []


def test_a_killed_run_goes_on_and_equals_an_undisturbed_one(fresh, finished, tmp_path):
    project = shutil.copytree(fresh, tmp_path / "killed")
    configure(project, "b", wait_for="go")
    run = subprocess.Popen(
        FIGURES,
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 600
        while not ((project / "results/rows/_provenance/a.json").exists() and (project / "logs/b.ipynb").exists()):
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.1)
        # Until Snakemake has noted that job a is complete.
        time.sleep(3)
        second = figures(project)
        assert second.returncode == 2
        assert "another `make figures` is at work" in second.stderr
    finally:
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert Results(project / "results/rows").jobs() == ["a"]

    before = stamps(project)
    (project / "go").touch()
    done = figures(project)
    assert done.returncode == 0, done.stderr
    assert changed(before, stamps(project)) == ["b.ipynb", "b.parquet", "budget.png", "draw.ipynb"]
    equal(project, finished[0])

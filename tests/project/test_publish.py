"""What README and docs show is copied from results/ by `make publish` alone, and by it only where it can be trusted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from tests.support.project import PROJECT
from tests.support.rows import make_rows

WORKFLOW = yaml.safe_load((PROJECT / "config/workflow.yaml").read_text())


@pytest.fixture
def project(tmp_path):
    """Make a project with one job, one figure and one table, and pages that show them."""
    for name in (
        "workflow/scripts/publish.py",
        "workflow/scripts/blocks.py",
        "pyproject.toml",
        "constraints.txt",
        "environment.yml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    (tmp_path / "config").mkdir()
    outputs = ["results/figures/budget.png", "results/tables/by_budget.md"]
    workflow = {
        "jobs": {"a": []},
        "drawing": {"notebook": "draw", "outputs": outputs},
        "published_by_hand": {"alone": ["results/tables/alone.md"]},
    }
    (tmp_path / "config/workflow.yaml").write_text(yaml.safe_dump(workflow))
    for name, text in zip(outputs, ("picture", "| the table |\n"), strict=True):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "results/timing.json").write_text(json.dumps({"seconds": 90, "cores": 2, "machine": "abacus"}))
    (tmp_path / "docs").mkdir()
    for page, name in (("README.md", "by-budget"), ("docs/study.md", "time")):
        (tmp_path / page).write_text(f"Before.\n\n<!-- generated: {name} -->\nold\n<!-- end -->\n\nAfter.\n")
    store(tmp_path)
    return tmp_path


def store(project: Path, job: str = "a", **note: object) -> None:
    Results(project / "results/rows").write(job, make_rows(), provenance({}) | {"dirty": False, **note})


def publish(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "workflow/scripts/publish.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def contents(project: Path) -> dict[str, str]:
    files = [path for path in project.rglob("*") if path.is_file() and path.suffix not in (".parquet", ".pyc")]
    return {str(path.relative_to(project)): path.read_text() for path in files}


def test_figures_tables_and_times_are_copied_and_pages_written(project):
    assert publish(project, "--check").returncode == 2
    done = publish(project)
    assert done.returncode == 0, done.stderr
    for name in ("figures/budget.png", "tables/by_budget.md", "timing.json"):
        assert (project / "docs" / name).read_text() == (project / "results" / name).read_text()
    shown = (project / "README.md").read_text()
    assert shown == "Before.\n\n<!-- generated: by-budget -->\n\n| the table |\n\n<!-- end -->\n\nAfter.\n"
    assert "`make figures` took 1.5 minutes on 2 cores (abacus)." in (project / "docs/study.md").read_text()
    after = contents(project)
    assert publish(project, "--check").returncode == 0
    assert publish(project).returncode == 0
    assert contents(project) == after


def test_what_is_run_by_hand_is_copied_where_its_rows_are(project):
    (project / "results/tables/alone.md").write_text("| alone |\n")
    assert publish(project).returncode == 0
    assert not (project / "docs/tables/alone.md").exists()
    store(project, "alone")
    assert publish(project).returncode == 0
    assert (project / "docs/tables/alone.md").read_text() == "| alone |\n"
    store(project, "alone", dirty=True)
    done = publish(project)
    assert done.returncode == 2 and "results/rows/alone" in done.stderr


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda project: store(project, dirty=True), "of code that was not committed; commit, delete them and run"),
        (lambda project: store(project, dirty=None), "outside a git checkout"),
        (
            lambda project: (project / "results/rows/a.parquet").unlink(),
            "missing, run `make figures` first: results/rows/a",
        ),
        (lambda project: (project / "results/figures/budget.png").unlink(), "first: results/figures/budget.png"),
    ],
    ids=["changed code", "no checkout", "no rows", "no figure"],
)
def test_what_cannot_be_trusted_is_not_published(project, fault, message):
    fault(project)
    before = contents(project)
    done = publish(project)
    assert done.returncode == 2 and message in done.stderr
    assert contents(project) == before


def test_a_part_that_nothing_generates_is_named(project):
    (project / "README.md").write_text("<!-- generated: no-such -->\n<!-- end -->\n")
    done = publish(project)
    assert done.returncode == 2
    assert "nothing generates 'no-such'; known are " in done.stderr


def test_all_that_is_published_is_made_below_results():
    by_hand = [path for paths in WORKFLOW["published_by_hand"].values() for path in paths]
    made = [*WORKFLOW["drawing"]["outputs"], *WORKFLOW["published"], *by_hand]
    assert {str(Path(path).parent) for path in made} == {"results/figures", "results/tables"}


def test_pages_and_environment_are_up_to_date():
    done = publish(PROJECT, "--check")
    assert done.returncode == 0, done.stderr

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
        "workflow/scripts/gpu_tables.py",
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


@pytest.mark.parametrize("name", ["no-such", "Model2_x"])
def test_a_part_that_nothing_generates_is_named(project, name):
    (project / "README.md").write_text(f"<!-- generated: {name} -->\n<!-- end -->\n")
    done = publish(project)
    assert done.returncode == 2
    assert f"nothing generates '{name}'; known are " in done.stderr


def test_all_that_is_published_is_made_below_results():
    by_hand = [path for paths in WORKFLOW["published_by_hand"].values() for path in paths]
    made = [*WORKFLOW["drawing"]["outputs"], *WORKFLOW["published"], *by_hand]
    assert {str(Path(path).parent) for path in made} == {"results/figures", "results/tables"}


def test_pages_and_environment_are_up_to_date():
    done = publish(PROJECT, "--check")
    assert done.returncode == 0, done.stderr


def measured(**first: object) -> dict[str, list[dict]]:
    """Return what benchmarks/gpu.py would write of one step of each kind."""
    head = {"device": "abacus", "torch": "2.9", "cuda": "13.0", "triton": None, "transformers": "5.19"}
    head |= {"commit": "0123456789", "changed": False, "code": ""} | first
    case = {"tokens": 576, "budget": 64, "batch": 8, "dtype": "float32"}
    loops = ("id_select", "kernel", "torch", "reference", "divprune", "cdpruner", "scope")
    wall = {"median_us": 150.0, "low_us": 140.0, "high_us": 170.0, "target_us": 100}
    greedy: list[dict] = [case | {"part": "agreement", "backend": "torch", "gap": 2e-9}]
    greedy += [case | wall | {"part": "times", "contestant": one, "device_us": 90.0, "times_ours": 2} for one in loops]
    model: dict = {"model": "llava-next-7b", "cache_bytes": 2**20, "peak_bytes": 2**34}
    alone = model | {"part": "language", "kept_tokens": 320, "times_faster": 3.0}
    language = [alone | {"phase": name, "median_ms": 7.0} for name in ("prefill", "decode", "whole")]
    answers = []
    for method, kept in (("full", 2928), ("idselection", 320)):
        for number, phase in enumerate(("encode", "select", "prefill", "decode")):
            row = model | {"part": "answers", "method": method, "kept_tokens": kept, "phase": phase}
            answers += [row | {"median_ms": number + 1.0}] if method != "full" or phase != "select" else []
    whole = model | {"part": "answers", "phase": "end to end", "median_ms": 50.0, "over_ideal": 1.02, "over_full": 0.4}
    answers += [whole | {"method": name, "kept_tokens": 320} for name in ("idselection", "ideal")]
    answers += [whole | {"method": "full", "kept_tokens": 2928, "over_full": 1.0}]
    answers += [{"part": "left out", "model": "qwen", "what": "the ideal", "why": "three axes"}]
    found = {"greedy": greedy, "language": language, "answers": answers}
    return {step: [head | {"step": step}, *rows] for step, rows in found.items()}


def write_measured(project: Path, steps: dict[str, list[dict]]) -> None:
    (project / "results/gpu/cuda-full").mkdir(parents=True)
    for step, rows in steps.items():
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (project / f"results/gpu/cuda-full/{step}.jsonl").write_text(text)
    (project / "results/gpu/cuda-full/late.why").write_text("stopped")
    (project / "README.md").write_text("<!-- generated: gpu -->\n<!-- end -->\n")


def test_rows_of_a_gpu_become_tables(project):
    write_measured(project, measured())
    done = publish(project, "--gpu")
    assert done.returncode == 0, done.stderr
    shown = (project / "README.md").read_text()
    loops = "2.0x | 2.0x | 2.0x | 2.0x"
    assert f"| 576 -> 64 | 8 | float32 | 2e-09 | 90.0 | 150 (140-170) | below 100 | yes | {loops} |" in shown
    assert "| llava-next-7b | 320 | 7.0 | 7.0 | 7.0 | 3.00x | 1.0 | 16.0 |" in shown
    assert "| llava-next-7b | 2928 | 1.0 |  | 3.0 | 4.0 | 1.0 | 16.0 |  |  |  |  |" in shown
    assert "| llava-next-7b | 320 | 1.0 | 2.0 | 3.0 | 4.0 | 1.0 | 16.0 | 50.0 | 1.020 | 2.50x | 2.5x |" in shown
    assert "- qwen: the ideal: three axes" in shown
    assert "Measured on abacus, torch 2.9, cuda 13.0, transformers 5.19, commit 01234567." in shown
    assert {path.name for path in (project / "docs/gpu").iterdir()} == {f"{step}.jsonl" for step in measured()}


@pytest.mark.parametrize("first", [{"changed": True}, {"commit": None, "changed": None, "code": "other"}])
def test_rows_of_a_gpu_on_other_code_are_refused(project, first):
    write_measured(project, measured(**first))
    done = publish(project, "--gpu")
    assert done.returncode == 2 and "was measured on code that is not committed" in done.stderr
    assert not (project / "docs/gpu").exists()


def test_rows_of_a_gpu_that_are_not_there_are_named(project):
    done = publish(project, "--gpu")
    assert done.returncode == 2 and "no rows in results/gpu/cuda-full: run `make bench-gpu`" in done.stderr

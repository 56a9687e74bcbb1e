"""The report is one file that holds all it shows."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest

from idsel_core.study.report import ablation_figures, tables, theme
from idsel_core.study.store.provenance import provenance
from idsel_core.study.store.results import Results
from tests.support.project import PROJECT
from tests.support.rows import make_rows

mpl.use("Agg")


def report(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "idsel_core.study.cli", "report"]
    environment = {"PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def drawn(tmp_path):
    store = Results(tmp_path / "results/rows")
    store.write("budget", make_rows(), provenance({"gammas": [5.0, 20.0], "note": "<b>"}))
    rows = store.frame()
    theme.save(
        ablation_figures.objects_figure(rows),
        tmp_path / "results/figures",
        "objects",
        store.origin("budget", resamples=9),
    )
    tables.save_table(rows.groupby("budget", as_index=False)["chance"].mean(), tmp_path / "results/tables", "chance")
    return store


def test_a_report_holds_figures_tables_parameters_and_environment(drawn, tmp_path):
    done = report(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 figures, 1 jobs" in done.stdout
    page = (tmp_path / "results/report.html").read_text()
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', page)[1]
    assert base64.b64decode(picture) == (tmp_path / "results/figures/objects.png").read_bytes()
    for said in ("resamples: 9", ">0.25</td>", "gammas:", "torch:", "note: &lt;b&gt;", "python:"):
        assert said in page
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []


def test_without_figures_or_with_a_damaged_store_nothing_is_written(drawn, tmp_path):
    (tmp_path / "results/rows/budget.parquet").write_bytes(b"")
    done = report(tmp_path)
    assert done.returncode == 2 and "budget.parquet cannot be read" in done.stderr
    for path in (tmp_path / "results/figures").iterdir():
        path.unlink()
    done = report(tmp_path)
    assert done.returncode == 2 and "no figures in results/figures/; run `make figures` first" in done.stderr
    assert not (tmp_path / "results/report.html").exists()

"""A sweep and a notebook over a task of lmms-eval: they end, go on, and agree with the study question by question.

`make test-eval` runs these in the environment that has lmms-eval.
"""

import os
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("lmms_eval", reason="make test-eval runs these")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

from data.scenes import as_benchmarks
from idsel_core.methods import get_method
from idsel_core.study.cli import main
from idsel_core.study.dataset import FULL, read_split
from idsel_core.study.encodings import encode_split
from idsel_core.study.evaluate import Study
from idsel_core.study.open_backbone import open_backbone
from idsel_core.study.paths import DATA, MODEL, SWEEPS
from idsel_core.study.run.notebook_runner import run
from idsel_core.study.store.results import Results
from tests.support import small
from tests.support.project import PROJECT

QUESTIONS, BUDGETS, TASK = 6, [64, 16], "scenes_textvqa"
GRID = {"method": ["full", "idselection"], "budget": [BUDGETS], "data": f"lmms:tasks/{TASK}", "questions": QUESTIONS}
SAME = ["prediction", "answer", "correct", "tokens_before", "tokens_kept", "tokens_average", "prefill_gflops"]
SAME += ["importance", "normalise", "features", "update", "gamma", "positions", "seed"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A small project with a grid, and a task with more questions than are asked."""
    folder = small.build(tmp_path_factory.mktemp("sweep") / "project", GRID)
    asked = as_benchmarks.write(folder / "tasks", read_split("test", PROJECT / DATA), QUESTIONS + 2)
    return folder, asked[TASK][:QUESTIONS]


@pytest.fixture(scope="module")
def study(project, tmp_path_factory):
    """The study's rows of the same questions, read from the scenes."""
    whole = read_split("test", PROJECT / DATA)
    questions = whole.questions[whole.questions["question_id"].isin(project[1])].reset_index(drop=True)
    split = replace(whole, questions=questions, images=whole.images.loc[questions["image_id"].unique()])
    backbone, processor = open_backbone(PROJECT / MODEL)
    methods = [get_method("idselection", budget=budget) for budget in BUDGETS]
    rows = Study(backbone, processor, split, encode_split(backbone, processor, split)).run([FULL, *methods])
    store = Results(tmp_path_factory.mktemp("study"))
    store.write("study", rows, {})
    return store.frame()


def check_agrees(rows, study, asked):
    """Compare rows of the task with the study's, whose questions have other names and whose images one size."""
    keys = ["method", "budget", "question_id"]
    rows = rows.assign(question_id=[asked[int(place)] for place in rows["question_id"]])
    assert (rows.loc[rows["method"] == FULL, "budget"] == 1).all()
    rows.loc[rows["method"] == FULL, "budget"] = study.loc[study["method"] == FULL, "budget"].iloc[0]
    rows = rows.set_index(keys)[SAME]
    wanted = study.set_index(keys)[SAME].loc[rows.index]
    pd.testing.assert_frame_equal(rows, wanted, check_dtype=False, check_exact=False, rtol=1e-6)


def test_a_sweep_over_a_task_agrees_with_the_study_and_is_not_asked_again(project, study, monkeypatch, capfd):
    folder, asked = project
    monkeypatch.chdir(folder)
    command = ["sweep", "grid.yaml", "--cores", "2"]
    assert main(command) == 0, capfd.readouterr().err
    assert "2 jobs, 0 of them stored, 2 to run: 18 answers" in capfd.readouterr().out
    store = Results(Path(SWEEPS, "grid"))
    rows = store.frame()
    assert len(rows) == len(study) == QUESTIONS * (1 + len(BUDGETS))
    assert set(rows["dataset"]) == {TASK} and set(rows["split"]) == {"test"}
    check_agrees(rows, study, asked)
    # The comparison means something: budgets differ in their answers.
    assert rows.groupby(["method", "budget"])["correct"].mean().nunique() > 1
    made = {path: path.stat().st_mtime_ns for path in store.root.rglob("*.*")}
    assert main(command) == 0
    assert "2 jobs, 2 of them stored, 0 to run: 0 answers" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*.*")} == made


def test_the_gamma_ablation_over_a_task_agrees_with_the_study(project, study, tmp_path):
    folder, asked = project
    given = {"backbone": str(PROJECT / MODEL), "data": f"lmms:{folder}/tasks/{TASK}", "questions": QUESTIONS}
    given |= {"gammas": [20.0, "auto"], "updates": ["multiply"], "budgets": [16], "resamples": 50}
    given |= {"results_dir": str(tmp_path / "rows"), "figures_dir": str(tmp_path / "figures")}
    run(PROJECT / "notebooks/02_ablation_gamma.ipynb", tmp_path / "executed.ipynb", given)
    results = Results(tmp_path / "rows")
    assert results.jobs() == [f"02_ablation_gamma-embedded-{TASK}-test"]
    rows = results.frame(results.jobs()[0])
    assert len(rows) == 3 * QUESTIONS
    chosen = rows[(rows["method"] == "idselection") & (rows["gamma"] != 20)]
    assert len(chosen) == QUESTIONS
    check_agrees(chosen, study, asked)
    assert (tmp_path / f"figures/02_gamma-embedded-{TASK}-test.png").is_file()

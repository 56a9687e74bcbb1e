"""The gamma ablation and the efficiency study end to end, with tiny models of families saved as on the hub."""

import importlib.util
import warnings

import pandas as pd
import pytest

from idsel_core.study.dataset import FULL
from idsel_core.study.open_study import open_study
from idsel_core.study.run.notebook_runner import load_parameters, run
from idsel_core.study.store.results import Results
from idsel_core.study.store.times import Times
from tests.support import hub_folders
from tests.support.project import PROJECT

NOTEBOOK = PROJECT / "notebooks/02_ablation_gamma.ipynb"
FAST = ("qwen2_5_vl", "internvl", "llava_next", "smolvlm")
FAMILIES = [
    pytest.param(
        name,
        marks=[
            *([] if name in FAST else [pytest.mark.slow]),
            pytest.mark.skipif(
                name == "smolvlm" and not importlib.util.find_spec("num2words"), reason="num2words is not installed"
            ),
        ],
    )
    for name in hub_folders.PROCESSORS
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gamma_ablation_runs_and_goes_on(family, tmp_path):
    folder = hub_folders.save(family, tmp_path / family)
    photos = hub_folders.own_data(family, tmp_path / "photos", count=2)
    asked = {"backbone": str(folder), "data": str(photos), "split": "photos", "questions": 0, "batch": 3}
    asked |= {"gammas": [1.0, 20.0], "budgets": [5], "updates": ["subtract"], "resamples": 50}
    asked |= {"results_dir": str(tmp_path / "rows"), "figures_dir": str(tmp_path / "figures")}
    run(NOTEBOOK, tmp_path / "first.ipynb", asked)
    results, job = Results(tmp_path / "rows"), f"02_ablation_gamma-{family}-photos-photos"
    assert results.jobs() == [job]
    rows = results.frame(job)
    assert len(rows) == 3 * 4 and set(rows["tokens_kept"]) == {5}
    assert set(rows["backbone"]) == {family} and set(rows["dataset"]) == {"photos"}
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == [f"02_gamma-{family}-photos-photos.{kind}" for kind in ("pdf", "png")]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["internvl", "qwen2_audio"])
def test_the_other_ablations_run_without_a_companion_and_boxes(family, tmp_path):
    folder = hub_folders.save(family, tmp_path / family)
    photos = hub_folders.own_data(family, tmp_path / "photos", count=2)
    said = open_study("photos", backbone=folder, data=photos, new_tokens=1).run([FULL])["prediction"]
    table = pd.read_csv(photos / "photos.csv").assign(answer=[text or "red" for text in said])
    table.to_csv(photos / "photos.csv", index=False)
    asked = {"backbone": str(folder), "data": str(photos), "split": "photos", "questions": 0, "resamples": 50}
    asked |= {"results_dir": str(tmp_path / "rows"), "figures_dir": str(tmp_path / "figures")}
    several = {"importances": ["saliency", "relevance"], "features": ["projector"], "budgets": [5]}
    run(PROJECT / "notebooks/03_ablation_importance.ipynb", tmp_path / "3.ipynb", asked | several)
    run(PROJECT / "notebooks/04_ablation_budget.ipynb", tmp_path / "4.ipynb", asked | {"budgets": [8, 5]})
    rows = Results(tmp_path / "rows")
    assert set(rows.frame(f"03_ablation_importance-{family}-photos-photos")["importance"]) == {"saliency"}
    assert "Settings with relevance are left out: relevance is not available" in (tmp_path / "3.ipynb").read_text()
    budgets = rows.frame(f"04_ablation_budget-{family}-photos-photos")
    assert set(budgets.loc[budgets["method"] == "idselection", "tokens_kept"]) == {8, 5}
    executed = (tmp_path / "4.ipynb").read_text()
    assert "downsample cannot run" in executed and "Not asked: kept_positions names none of the budgets" in executed
    assert (tmp_path / f"figures/04_budget-{family}-photos-photos.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "size"), [("llava", []), ("qwen2_5_vl", [48, 48]), ("qwen2_audio", [])])
def test_the_efficiency_study_times_any_backbone(family, size, tmp_path):
    folder = hub_folders.save(family, tmp_path / family)
    asked = load_parameters(PROJECT / "config/smoke/08_efficiency.yaml") | {"backbone": str(folder), "image_size": size}
    asked |= {"curve": [8, 4], "budgets": [8, 4], "final_budgets": [4], "ideal_budgets": [4]}
    asked |= {f"{kind}_dir": str(tmp_path / kind) for kind in ("results", "times", "figures")}
    run(PROJECT / "notebooks/08_efficiency.ipynb", tmp_path / "executed.ipynb", asked)
    times = Times(tmp_path / "times")
    assert times.jobs() == [f"08_efficiency-{family}"]
    rows = times.frame(times.jobs()[0])
    assert set(rows["backbone"]) == {family} and {4, 8} <= set(rows["kept_tokens"])
    assert ("ideal" in set(rows["method"])) == (family == "llava")  # no prompt is cut by hand where positions have axes
    assert (tmp_path / f"figures/08_phases-{family}.png").is_file()
    executed = (tmp_path / "executed.ipynb").read_text()
    assert f"No comparison with {family} is stored" in executed
    assert ("cannot be cut by hand" in executed) == (family != "llava")


@pytest.mark.parametrize("family", ["internvl", "qwen2_audio"])
def test_a_killed_job_asks_only_what_is_left(family, tmp_path, monkeypatch):
    """The rows of the first questions are kept, and those of the whole are as of a run that nothing stopped."""
    from idsel_core.methods import get_method
    from idsel_core.study.question_inputs import QuestionReader
    from idsel_core.study.store.resume import ResumableRows

    monkeypatch.setattr(ResumableRows.__init__, "__defaults__", (0.0,))
    photos = hub_folders.own_data(family, tmp_path / "photos", count=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = open_study("photos", backbone=hub_folders.save(family, tmp_path / family), data=photos)
    methods = [get_method("idselection", budget=4, gamma=gamma) for gamma in (1.0, 20.0)]
    whole = study.run(methods, batch=2)
    plain, asked = QuestionReader.read, []

    def stops(reader, questions, *others, **named):
        asked.extend(questions["question_id"])
        if len(asked) == 6:
            raise KeyboardInterrupt
        return plain(reader, questions, *others, **named)

    monkeypatch.setattr(QuestionReader, "read", stops)
    with pytest.raises(KeyboardInterrupt):
        study.run(methods, batch=2, resume=tmp_path / "kept")
    asked.append("more")
    assert study.run(methods, batch=2, resume=tmp_path / "kept").equals(whole)
    assert len(asked) == 6 + 1 + 2

"""`idsel figure` draws from the stores alone, and says what there is where it cannot."""

import matplotlib as mpl
import pandas as pd
import pytest
import yaml
from PIL import Image

from idsel_core.study.report import ablation_figures, drawings, theme
from idsel_core.study.report.alt_text import read_alt
from idsel_core.study.store.provenance import provenance, read_origin
from idsel_core.study.store.results import Results
from tests.support.commands import command
from tests.support.project import PROJECT
from tests.support.rows import make_rows

mpl.use("Agg")
main = command("figure")
WORKFLOW = yaml.safe_load((PROJECT / "config/workflow.yaml").read_text())


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A folder with rows of the budget ablation."""
    monkeypatch.chdir(tmp_path)
    rows = pd.concat([make_rows(), make_rows(method="random"), make_rows(method="full", budgets=(576,))])
    rows = pd.concat([rows, make_rows(method="no-image", budgets=(0,))]).assign(correct=True)
    Results("results/rows").write("04_ablation_budget", rows, provenance({}))
    yield tmp_path
    theme.use_theme()


@pytest.mark.parametrize("use", ["paper", "slides"])
def test_figures_are_drawn_from_rows_for_a_use(stored, use, capsys):
    assert main(["budget", "objects", "--for", use, "--resamples", "9"]) == 0
    assert f"results/figures/{use}/budget.pdf and .png" in capsys.readouterr().out
    path = stored / f"results/figures/{use}/budget.png"
    with Image.open(path) as image:
        assert image.width == round(theme.USES[use].column * theme.USES[use].dpi)
    assert read_origin(path)["parameters"]["resamples"] == 9
    assert "rows/04_ablation_budget" in read_origin(path.with_suffix(".pdf"))["results"]
    assert "ID-Selection 100% at 16" in read_alt(path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["bugdet"],
            "there is no figure 'bugdet', did you mean 'budget'?; there are training, training_smollm2, gamma",
        ),
        (["--list", "bugdet"], "there is no figure 'bugdet'"),
        (["budget", "gamma"], "figure gamma is drawn from 02_ablation_gamma in results/rows, which is not there"),
        (["sizing"], "sizing is drawn from 09_sizing in results/times"),
        (["budget", "--for", "posters"], "invalid choice: 'posters'"),
    ],
)
def test_what_cannot_be_drawn_is_said_and_nothing_is_written(stored, words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not (stored / "results/figures").exists()


@pytest.mark.parametrize("words", [[], ["--list"]])
def test_all_figures_are_listed_with_what_is_missing(stored, words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(drawings.FIGURES)
    missing = {line.split()[0]: "not stored" in line for line in lines}
    assert missing["gamma"] and missing["sizing"] and not missing["budget"] and not missing["training"]


def test_the_comparison_can_do_without_the_job_that_asked_the_controls():
    class Few(drawings.Stored):
        def jobs(self):
            return {"06_comparison"}

    assert drawings.missing("comparison", Few("rows", "times")) == []
    assert drawings.missing("budget", Few("rows", "times")) == ["04_ablation_budget"]


def test_the_workflow_draws_figures_that_there_are():
    made = {path.split("/")[-1].split(".")[0] for path in WORKFLOW["drawing"]["outputs"] if "/figures/" in path}
    assert made <= set(drawings.FIGURES)
    by_hand = {"across_accuracy", "across_ranks", "backbones", "default", "efficiency_selection"}
    assert set(drawings.FIGURES) - made == by_hand


def test_every_figure_has_words_of_its_own():
    figure = ablation_figures.training_figure(pd.read_json(drawings._LOG, lines=True))
    assert figure.get_label() and len({one.says for one in drawings.FIGURES.values()}) == len(drawings.FIGURES)

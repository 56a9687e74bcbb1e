"""Orders of methods on two backbones: accuracies, ranks, their agreement, figures, tables and sentences."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from idsel_core.study.report import ranks
from idsel_core.study.report.alt_text import alt_text
from idsel_core.study.report.drawings import FIGURES, Stored, draw, missing
from idsel_core.study.store.provenance import read_origin
from idsel_core.study.store.results import Results
from tests.support.project import PROJECT
from tests.support.rows import make_rows

QUESTIONS = 60
ACCURACY = {
    "embedded": {"idselection": 0.9, "topk": 0.5, "uniform": 0.3},
    "smollm2": {"idselection": 0.2, "topk": 0.6, "uniform": 0.4},
}
ENDS = {"full": 1.0, "no-image": 0.1, "other-image": 0.2}


def answered(backbone: str, method: str, budget: float, accuracy: float, **more) -> pd.DataFrame:
    """Rows in which the first questions of an order, which has both question types, are right."""
    rows = make_rows(questions=QUESTIONS, budgets=(budget,), method=method).assign(backbone=backbone, **more)
    return rows.assign(correct=(np.arange(QUESTIONS) < accuracy * QUESTIONS).astype(float))


def made_up() -> pd.DataFrame:
    parts = []
    for backbone, accuracy in ACCURACY.items():
        parts += [answered(backbone, method, 0, right) for method, right in ENDS.items()]
        parts += [answered(backbone, method, n, right) for method, right in accuracy.items() for n in (64, 16)]
    parts.append(answered("embedded", "fastv", 16, 0.85, convention="final"))
    parts.append(answered("smollm2", "fastv", 64, 0.7, convention="average"))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def store(tmp_path):
    store = Results(tmp_path / "rows")
    store.write(ranks.JOB, made_up(), {})
    return store


@pytest.fixture
def rows(store):
    return ranks.read_ranked(store)


def test_methods_are_ranked_where_all_backbones_read_the_budget_in_the_mean(rows):
    assert ranks.budgets_of(rows) == [64, 16]
    assert [ranks.ranked_methods(rows, n) for n in (64, 16)] == [["idselection", "topk", "uniform"]] * 2
    table = ranks.ranks(rows, resamples=200)
    found = table[table["budget"] == 64].set_index(["backbone", "method"])["rank"].to_dict()
    wanted = {"embedded": ["idselection", "topk", "uniform"], "smollm2": ["topk", "uniform", "idselection"]}
    assert found == {(name, method): k + 1 for name, order in wanted.items() for k, method in enumerate(order)}
    assert (table["low"] <= table["rank"]).all() and (table["rank"] <= table["high"]).all()
    assert set(table["methods"]) == {3}


def test_equal_methods_share_the_mean_of_their_places(rows):
    same = rows.assign(correct=rows["correct"].where(rows["method"].isin(ENDS), 1.0))
    table = ranks.ranks(same, resamples=20)
    assert set(table["rank"]) == set(table["low"]) == set(table["high"]) == {2.0}
    assert ranks.agreement(same, resamples=20)["tau"].isna().all()
    said = ranks.about_ranks(same, resamples=20)
    assert "highest is ID-Selection, top-K importance and uniform grid on both; their agreement cannot be told" in said


def test_agreement_is_kendalls_tau_over_common_resamples(rows):
    table = ranks.agreement(rows, resamples=300)
    assert table["tau"].tolist() == pytest.approx([kendalltau([1, 2, 3], [3, 1, 2]).statistic] * 2)
    assert table[["first", "second", "methods"]].drop_duplicates().to_numpy().tolist() == [["embedded", "smollm2", 3]]
    assert (table["low"] <= table["tau"]).all() and (table["tau"] <= table["high"]).all()
    twice = rows[rows["backbone"] == "embedded"]
    twice = pd.concat([twice, twice.assign(backbone="copy")], ignore_index=True)
    assert ranks.agreement(twice, resamples=50)[["tau", "low", "high"]].to_numpy() == pytest.approx(1)


def test_losses_stand_first_and_are_true(rows):
    said = ranks.about_ranks(rows, resamples=200).splitlines()
    assert said[0].startswith("- **embedded**: ID-Selection is below none. Of 4 comparisons at equal")
    assert "budgets it is below in 0, not told apart in 0, above in 4. Of the comparison with methods" in said[0]
    assert said[0].endswith("read more tokens † it is below in 0, not told apart in 1, above in 0.")
    assert said[1].startswith("- **smollm2**: ID-Selection is below FastV (-50.0), top-K importance (-40.0)")
    assert "at 64 tokens; " in said[1]
    assert said[2].startswith("- **embedded** answers, in percent, 100.0 [100.0, 100.0] with all tokens")
    assert said[2].endswith("All tokens are above another image in count, read.")
    highest = "highest is ID-Selection on embedded, top-K importance on smollm2;"
    assert said[4].startswith(f"- **64 tokens**, 3 methods: {highest}")
    blind = rows["backbone"].eq("smollm2") & rows["method"].eq("full") & rows["question_type"].eq("read")
    worse = rows.assign(correct=rows["correct"].where(~blind, 0.0))
    assert "above another image in count; not so in read (-" in ranks.about_ranks(worse, resamples=200)


def test_tables_hold_all_backbones_methods_and_budgets(rows):
    table = ranks.budgets_table(rows, resamples=50)
    assert list(table) == ["backbone", "method", "64 tokens", "16 tokens"]
    assert table["method"].tolist() == [
        *("ID-Selection", "top-K importance", "uniform grid", "FastV (final) †"),
        *("FastV", "top-K importance", "uniform grid", "ID-Selection"),
    ]
    assert table.loc[3, "64 tokens"] == "-" and table.loc[3, "16 tokens"].startswith("85.0 [")
    types = ranks.types_table(rows, [16], resamples=50)
    assert list(types) == ["backbone", "tokens", "method", "all", "count", "read"]
    assert types["method"].tolist()[:4] == ["all tokens", "no image", "another image", "ID-Selection"]
    assert types.loc[0, "count"] == "100.0 [100.0, 100.0]" and set(types["tokens"]) == {"", "16"}


def test_figures_show_every_backbone_and_budget(rows):
    figure = ranks.accuracy_figure(rows, resamples=50)
    assert [axis.get_title() for axis in figure.axes] == ["embedded", "smollm2"]
    assert {"all tokens", "no image", "another image"} <= {line.get_label() for line in figure.axes[1].lines}
    plt.close(figure)
    figure = ranks.ranks_figure(rows, resamples=50)
    assert [axis.get_title() for axis in figure.axes] == ["64 tokens", "16 tokens"]
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[1, 3], [2, 1], [3, 2]]
    assert "64 tokens, rank by accuracy: ID-Selection 1 at embedded, 3 at smollm2" in alt_text(figure)
    plt.close(figure)


def test_other_questions_are_refused(store):
    rows = made_up()
    store.write(ranks.JOB, rows[(rows["backbone"] != "smollm2") | (rows["question_id"] != "q0000")], {})
    with pytest.raises(ValueError, match="embedded and smollm2 were asked 1 different questions"):
        ranks.read_ranked(store)


def test_the_drawings_say_what_they_lack(store, tmp_path):
    stored = Stored(store.root, tmp_path / "times", resamples=20)
    for name in ("across_accuracy", "across_ranks"):
        assert FIGURES[name].jobs == (ranks.JOB,) and missing(name, stored) == []
        figure, note = draw(name, stored)
        assert ranks.JOB in str(note)
        plt.close(figure)
    assert missing("across_ranks", Stored(tmp_path / "empty", tmp_path)) == [ranks.JOB]


def test_what_was_published_is_what_the_rows_say():
    results = Results(PROJECT / "docs/rows")
    if ranks.JOB not in results.jobs():
        pytest.skip("`make smollm2` was not published yet")
    rows, note = ranks.read_ranked(results), results.provenance(ranks.JOB)
    assert note["dirty"] is False and note["commit"]
    assert rows.groupby("backbone")["question_id"].nunique().to_dict() == {"embedded": 602, "smollm2": 602}
    page = PROJECT / "docs/tables/across_backbones_said.md"
    assert page.read_text().startswith(ranks.about_ranks(rows))
    assert read_origin(page)["results"][f"rows/{ranks.JOB}"]["commit"] == note["commit"]

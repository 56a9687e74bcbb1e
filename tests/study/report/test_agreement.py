"""Loyalty and F1 of stored rows, against counting by hand."""

import numpy as np
import pandas as pd
import pytest

from idsel_core.study.report.agreement import as_loyal, f1_scores, loyalty
from idsel_core.study.report.comparison_tables import comparison_table
from idsel_core.study.report.tables import accuracy_table, method_table
from idsel_core.study.report.theme import label
from tests.support.rows import make_rows


def rows_of(**predictions):
    """Rows of methods that answered four questions, whose right answers are yes, no, yes, no."""
    frames = [
        pd.DataFrame(
            {
                "method": method,
                "budget": 8.0,
                "question_type": "q",
                "question_id": list("abcd"),
                "answer": ["yes", "no", "yes", "no"],
                "prediction": given,
                "correct": [float(g == a) for g, a in zip(given, ["yes", "no", "yes", "no"], strict=True)],
            }
        )
        for method, given in predictions.items()
    ]
    return pd.concat(frames, ignore_index=True)


ROWS = rows_of(full=["yes", "yes", "no", "no"], mine=["yes", "yes", "yes", "perhaps"])


def test_loyalty_counts_the_same_answers_right_or_wrong():
    table = loyalty(ROWS.sample(frac=1, random_state=0), ["method"], resamples=200).set_index("method")
    assert table["mean"].to_dict() == {"full": 1.0, "mine": 0.5}
    assert table.loc["full", ["low", "high"]].tolist() == [1, 1]
    assert table.loc["mine", "low"] < 0.5 < table.loc["mine", "high"]


def test_loyalty_does_not_depend_on_right_answers():
    changed = ROWS.assign(correct=0.0, answer="x")
    assert as_loyal(changed)["correct"].equals(as_loyal(ROWS)["correct"])


def test_loyalty_is_to_the_same_backbone_on_the_same_data():
    both = pd.concat([ROWS.assign(backbone="a"), rows_of(full=["no"] * 4, mine=["no"] * 4).assign(backbone="b")])
    assert as_loyal(both).groupby(["backbone", "method"])["correct"].mean().to_dict() == {
        ("a", "full"): 1.0,
        ("a", "mine"): 0.5,
        ("b", "full"): 1.0,
        ("b", "mine"): 1.0,
    }


def test_loyalty_needs_the_full_models_answers():
    with pytest.raises(ValueError, match=r"needs the answers of method 'full', which lacks 1 of 7 rows' questions"):
        as_loyal(ROWS.drop(index=0))
    twice = pd.concat([ROWS, ROWS[:1].assign(prediction="no")], ignore_index=True)
    with pytest.raises(ValueError, match="method 'full' gave several answers to question 'a'"):
        as_loyal(twice)
    as_loyal(pd.concat([ROWS, ROWS[:1]], ignore_index=True))  # asked twice, with one answer


def test_f1_is_that_of_all_rows_together():
    table = f1_scores(ROWS, ["method"], resamples=500).set_index("method")
    assert table["f1"].to_dict() == {"full": 2 * 1 / (2 * 1 + 1 + 1), "mine": 2 * 2 / (2 * 2 + 1 + 0)}
    assert (table["low"] <= table["f1"]).all() and (table["f1"] <= table["high"]).all()
    assert (table["questions"] == 4).all()
    more = pd.concat([ROWS, ROWS.assign(question_id=ROWS["question_id"] + "x", answer="red")], ignore_index=True)
    assert f1_scores(more, ["method"], resamples=500).set_index("method").equals(table)
    with pytest.raises(ValueError, match="whose right answer is yes or no; there are none"):
        f1_scores(ROWS.assign(answer="red"), ["method"])


def test_intervals_of_f1_cover_the_truth_as_often_as_they_say():
    draw, truth, inside = np.random.default_rng(0), 0.8, 0
    for number in range(80):
        right = draw.random(300) < 0.8
        answer = np.where(draw.random(300) < 0.5, "yes", "no")
        given = np.where(right, answer, np.where(answer == "yes", "no", "yes"))
        rows = pd.DataFrame({"method": "m", "question_type": "q", "question_id": range(300), "answer": answer})
        (found,) = f1_scores(
            rows.assign(prediction=given, correct=right), ["method"], resamples=300, seed=number
        ).to_dict("records")
        inside += found["low"] <= truth <= found["high"]
    assert 0.88 <= inside / 80 <= 1


def test_tables_show_loyalty_where_it_is_asked_for():
    full = make_rows(budgets=(576,), method="full")
    mine = make_rows().assign(prediction=lambda rows: rows["answer"])
    rows = pd.concat([full, mine], ignore_index=True)
    share = (mine["answer"][:12] == "two").mean()
    table = accuracy_table(rows, loyal=True)
    assert table.loc[table["budget"] == 576, "loyalty"].tolist() == [100]
    assert table.loc[table["budget"] == 64, "loyalty"].tolist() == [round(100 * share, 1)]
    chance = table.loc[table["method"] == label("chance"), "loyalty"]
    assert len(chance) == 1 and chance.isna().all()
    for make in (method_table, comparison_table):
        assert "loyalty" not in make(rows, [64], 50)
        shown = make(rows, [64], 50, loyal=True)["loyalty"].tolist()
        assert shown[0] == "100.0 [100.0, 100.0]" and shown[1].startswith(f"{100 * share:.1f} [")
    assert "loyalty" not in accuracy_table(rows)

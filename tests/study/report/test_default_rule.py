"""The rule that chooses the defaults, on made-up answers whose outcome is known."""

import numpy as np
import pandas as pd
import pytest

from idsel_core.study.report.default_rule import about_choice, mark_default, rank_settings, setting_names, shown_table
from idsel_core.study.report.table_text import BEST

BUDGETS = (192, 128, 64, 32, 16)
QUESTIONS = 400


def answers(rights, budget=None, **setting):
    """Return rows of a setting that answers each of two question types right this often."""
    number = np.arange(QUESTIONS)
    rows = pd.DataFrame(
        {
            "question_id": number.astype(str),
            "question_type": np.where(number % 2, "colour", "shape"),
            "correct": ((number // 2 * 7919) % (QUESTIONS // 2) < round(rights * QUESTIONS / 2)).astype(float),
            "method": "idselection" if setting else "full",
            "budget": float(budget or 576),
        }
    )
    knobs = {"update": "subtract", "importance": "saliency", "instruction": "words@0", "gamma": 20.0}
    return rows.assign(**({"features": "projector"} | knobs | setting) if setting else {})


def settings(*given):
    """Return rows of all tokens, always right, and of settings given as (share at each budget, knobs)."""
    parts = [answers(1.0)]
    for shares, knobs in given:
        parts += [answers(share, budget, **knobs) for share, budget in zip(shares, BUDGETS, strict=True)]
    return pd.concat(parts, ignore_index=True)


LOW, HIGH = (0.9, 0.8, 0.7, 0.6, 0.5), (0.98, 0.95, 0.9, 0.85, 0.8)


def test_the_best_setting_wins_where_none_is_tied():
    rows = settings((LOW, {"update": "subtract"}), (HIGH, {"update": "multiply"}))
    found = rank_settings(rows, 576, 32, resamples=200)
    assert found.leader == found.default == 0
    assert setting_names(found.table)[0] == "multiply, saliency, 20, projector"
    assert list(found.table["tied"]) == [True, False]
    assert found.table["gap"].tolist() == pytest.approx([0, np.mean(LOW) - np.mean(HIGH)])
    assert found.table["mean"].tolist() == pytest.approx([np.mean(HIGH), np.mean(LOW)])


def test_a_deeper_score_stands_beside_more_tokens_of_a_cheaper_one():
    """Two of 32 layers over 576 tokens pay for 36 tokens; shares between budgets are linear in the logarithm."""
    deep = {"importance": "instruction", "instruction": "last@2"}
    rows = settings((LOW, {"importance": "unified"}), (HIGH, deep))
    found = rank_settings(rows, 576, 32, resamples=200).table.set_index("importance")
    places = np.log2([16, 32, 64, 128, 192, 576])
    raised = [np.interp(np.log2(budget + 36), places, [*LOW[::-1], 1.0]) for budget in BUDGETS]
    assert found.at["unified", "gap"] == pytest.approx(np.mean(raised) - np.mean(HIGH))
    assert found.at["instruction", "gap"] == 0
    assert found["layers"].to_dict() == {"instruction": 2, "unified": 0}


def test_a_deeper_score_that_pays_for_too_much_loses():
    flat = (0.9, 0.9, 0.9, 0.89, 0.5)  # so that 36 tokens more bring much at the smallest budget
    deep = {"importance": "instruction", "instruction": "last@2"}
    found = rank_settings(
        settings((flat, {"update": "subtract"}), (np.array(flat) + 0.01, deep)), 576, 32, resamples=200
    )
    assert found.table["importance"][found.leader] == "saliency"
    assert found.table.set_index("importance").at["instruction", "gap"] < 0


def test_ties_go_to_fewer_flops_then_to_the_published_reading():
    deep = {"importance": "instruction", "instruction": "last@2"}
    ways = [
        (HIGH, {"update": "multiply"}),
        (HIGH, {"update": "multiply", "gamma": -1.0}),
        (HIGH, {"update": "subtract"}),
        (LOW, {"update": "subtract", "importance": "unified"}),
    ]
    places = np.log2([16, 32, 64, 128, 192, 576])
    equal = [np.interp(np.log2(budget + 36), places, [*HIGH[::-1], 1.0]) for budget in BUDGETS]
    found = rank_settings(settings(*ways, (equal, deep)), 576, 32, resamples=200)
    names = setting_names(found.table)
    assert found.table["tied"].sum() == 4
    assert names[found.default] == "subtract, saliency, 20, projector"
    assert "multiply, saliency, auto, projector" in names
    assert "3 are tied" in about_choice(found) and names[found.default] in about_choice(found)
    shown = shown_table(found)
    assert (shown["tied"] == "yes").sum() == 4
    marks = mark_default(found, shown)
    assert (marks == BEST).sum().sum() == 1 and marks.at[found.default, "setting"] == BEST


def test_between_equal_departures_the_gamma_without_a_scale_is_taken():
    ways = [(HIGH, {"gamma": gamma, "update": "multiply"}) for gamma in (5.0, -1.0, 80.0)]
    found = rank_settings(settings(*ways, (LOW, {"update": "subtract"})), 576, 32, resamples=200)
    assert setting_names(found.table)[found.default] == "multiply, saliency, auto, projector"


def test_companions_are_left_out_where_there_is_none():
    rows = settings((LOW, {"importance": "saliency"}), (HIGH, {"importance": "relevance"}))
    assert rank_settings(rows, 576, 32, companions=False, resamples=50).table["importance"].tolist() == ["saliency"]
    with pytest.raises(ValueError, match="no settings"):
        rank_settings(rows[rows["importance"] != "saliency"], 576, 32, companions=False)
    with pytest.raises(ValueError, match="'full'"):
        rank_settings(rows[rows["method"] != "full"], 576, 32)

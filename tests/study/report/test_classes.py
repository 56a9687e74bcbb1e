"""Classes of methods: settings are named by their knobs, classed by what they need, and compared within their class."""

import inspect

import numpy as np
import pandas as pd
import pytest

from idsel_core.methods import METHODS, IDSelection, drops_inside, get_method
from idsel_core.study.knobs import knob_columns
from idsel_core.study.report import classes
from idsel_core.study.store.results import Results
from tests.support.rows import make_rows

BUDGETS = [192, 64]
LAST = {"importance": "instruction", "instruction_layer": 2, "instruction_tokens": "last"}
ASKED = [
    *(IDSelection(budget) for budget in BUDGETS),
    *(get_method("topk", budget=budget) for budget in BUDGETS),
    *(get_method("cdpruner", budget=budget) for budget in BUDGETS),
    *(IDSelection(budget, importance="relevance") for budget in BUDGETS),
    *(IDSelection(budget, **LAST) for budget in (192, 156, 64, 28)),
    *(IDSelection.published(budget) for budget in BUDGETS),
    *(get_method("idselection-inside", budget=budget) for budget in BUDGETS),
    get_method("fastv", budget=192),
    get_method("fastv", budget=64, budget_convention="final"),
]


def rows_of(method, right, tokens=None, gflops=None):
    """Return rows of one method of which the first `right` of 12 questions are right."""
    budget = 576.0 if method == "full" else float(method.budget)
    rows = make_rows(budgets=(budget,), method=method if method == "full" else method.name)
    spent = {"tokens_average": tokens or budget, "prefill_gflops": gflops or budget / 100, "scoring_gflops": 0.0}
    return rows.assign(**knob_columns(method), **spent, correct=np.arange(12) < right)


@pytest.fixture(scope="module")
def rows():
    right = {"topk": 8, "cdpruner": 12, "fastv": 6}
    parts = [rows_of(method, right.get(method.name, 10)) for method in ASKED]
    return classes.by_setting(pd.concat([rows_of("full", 12), *parts], ignore_index=True))


def test_settings_are_named_by_their_knobs_and_classed_by_what_they_need(rows):
    found = rows.drop_duplicates("method").set_index("method")[["class", "layers"]].apply(tuple, axis=1).to_dict()
    assert found == {
        "full": (classes.BEFORE, 0),
        "idselection": (classes.BEFORE, 0),
        "topk": (classes.BEFORE, 0),
        "cdpruner": (classes.COMPANION, 0),
        "idselection, relevance": (classes.COMPANION, 0),
        "idselection, instruction, last@2": (classes.PASS, 2),
        "idselection, published reading": (classes.PASS, 2),
        "idselection-inside": (classes.INSIDE, 0),
        "fastv": (classes.INSIDE, 0),
    }


def test_a_layer_that_no_score_reads_is_no_pass():
    rows = rows_of(IDSelection(64, importance="saliency", instruction_layer=3), 10)
    assert classes.by_setting(rows)["class"].unique().tolist() == [classes.BEFORE]


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_the_class_with_a_companion_read_relevance_by_themselves(name):
    reads = not drops_inside(get_method(name, budget=1)) and "tokens.relevance" in inspect.getsource(METHODS[name])
    assert reads == (name in classes.COMPANIONED)


def test_a_pass_is_paid_for_in_tokens(rows):
    equal = classes.at_equal_flops(rows, 576, 32)
    last = equal["method"] == "idselection, instruction, last@2"
    assert sorted(equal.loc[last, "budget"].unique()) == [64, 100, 192, 228]
    assert (equal.loc[equal["layers"] == 0, "budget"] == rows.loc[rows["layers"] == 0, "budget"]).all()


def test_the_id_selection_of_a_class_meets_the_methods_of_its_class_alone(rows):
    gaps = classes.class_gaps(rows, BUDGETS, 32, 50)
    met = {key: set(part["other"]) for key, part in gaps.groupby(["class", "own"])}
    assert met == {
        (classes.BEFORE, "idselection"): {"topk"},
        (classes.COMPANION, "idselection, relevance"): {"cdpruner"},
        (classes.PASS, "idselection, instruction, last@2"): {"idselection, published reading"},
        (classes.INSIDE, "idselection-inside"): {"fastv"},
        (f"{classes.PASS}, at equal FLOPs", "idselection, instruction, last@2"): {"idselection", "topk"},
    }
    inside = gaps[gaps["class"] == classes.INSIDE]
    assert inside["budget"].tolist() == [192]
    assert inside["mean"].tolist() == pytest.approx([(10 - 6) / 12])


def test_losses_stand_first_and_are_said(rows):
    gaps = classes.class_gaps(rows, BUDGETS, 32, 50)
    lost = gaps["other"] == "cdpruner"
    gaps = gaps.assign(outcome=np.where(lost & (gaps["budget"] == 64), "loss", "tie"))
    table = classes.classes_table(gaps)
    assert list(table)[3:] == ["below", "not told apart from", "above"]
    of_companion = table[table["class"] == classes.COMPANION].set_index("tokens")["below"].to_dict()
    assert of_companion == {"192": "", "64": "CDPruner (-16.7)"}
    said = classes.about_classes(gaps)
    assert "ID-Selection, relevance is below 1 of 1 others at 64 tokens, above each of them or not" in said
    assert "ID-Selection is above each of them or not told apart from it at 192 and 64." in said


def test_a_share_at_as_many_flops_is_interpolated_over_their_logarithm():
    parts = [
        rows_of("full", 12, gflops=8.0),
        rows_of(IDSelection(192), 10, gflops=4.0),
        rows_of(IDSelection(64), 6, gflops=1.0),
        rows_of(get_method("fastv", budget=192), 4, tokens=192, gflops=2.0),
        rows_of(get_method("fastv", budget=64, budget_convention="final"), 12, tokens=167, gflops=0.5),
    ]
    table = classes.inside_table(classes.by_setting(pd.concat(parts, ignore_index=True)), resamples=500)
    assert table["counted as"].tolist() == ["mean", "left at last"]
    assert table["tokens a layer"].tolist() == ["192", "167"]
    # Halfway between 6 and 10 of 12 in the logarithm; each question type holds half of the questions.
    assert table["ID-Selection at as many FLOPs"].tolist() == ["66.7", "-"]
    assert table["difference"][0].startswith("-33.3 [")
    assert table["outcome"].tolist() == ["below", "-"]


def test_shares_stand_under_their_class(rows):
    table = classes.shares_by_setting(rows, BUDGETS, 50)
    assert table["class"].drop_duplicates().tolist() == [
        classes.BEFORE,
        classes.COMPANION,
        classes.PASS,
        classes.INSIDE,
    ]
    shown = table.set_index("method")["64 tokens"]
    assert shown["FastV"] == "-" and shown["top-K importance"].startswith("66.7 [")


def test_the_controls_are_read_from_the_job_that_asked_the_same_questions(tmp_path):
    results, control = Results(tmp_path), get_method("topk", budget=64)
    results.write("own", pd.concat([rows_of(IDSelection(64, **LAST), 9), rows_of(control, 7)]), {})
    other = [rows_of("full", 12), rows_of(IDSelection(64), 10), rows_of(control, 3)]
    further = rows_of(IDSelection(64), 0).assign(question_id=lambda one: "x" + one["question_id"])
    results.write("beside", pd.concat([*other, further]), {})
    found = classes.read_settings(results, "own", "beside")
    right = found.groupby("method")["correct"].sum().to_dict()
    assert right == {"full": 12, "idselection": 10, "topk": 7, "idselection, instruction, last@2": 9}
    with pytest.raises(ValueError, match="no rows of 'no-such': run it first"):
        classes.read_settings(results, "own", "no-such")
    results.write("fewer", rows_of(IDSelection(64), 10).head(5), {})
    with pytest.raises(ValueError, match="fewer asked 5 of the 12 questions of own"):
        classes.read_settings(results, "own", "fewer")


def test_a_method_has_a_class_before_it_was_asked():
    found = {method.name: classes.class_of(method) for method in ASKED if method.name != "idselection"}
    assert found == {
        "topk": classes.BEFORE,
        "cdpruner": classes.COMPANION,
        "idselection-inside": classes.INSIDE,
        "fastv": classes.INSIDE,
    }
    assert classes.class_of(IDSelection(16, **LAST)) == classes.PASS

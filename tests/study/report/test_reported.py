"""Reported numbers: what the files hold, and that only the same protocol and metric meet what is measured."""

import re

import pandas as pd
import pytest

from idsel_core.methods import METHODS
from idsel_core.study.report import reported
from idsel_core.study.report.reported import (
    COLUMNS,
    REPORTED,
    called,
    check_reported,
    mean_over_benchmarks,
    measured_scores,
    not_comparable,
    read_reported,
    set_beside,
)
from tests.support.rows import make_rows

TABLE = read_reported()


def test_the_files_hold_what_the_card_says():
    assert list(TABLE) == list(COLUMNS) and len(TABLE) > 1000
    card = (REPORTED / "README.md").read_text()
    assert set(re.findall(r"`([a-z_]+)\.csv`", card)) == {path.stem for path in REPORTED.glob("*.csv")}
    named = set(re.findall(r"`([a-z-]+)`", card))
    assert set(TABLE["protocol"]) - named <= {"id-selection", "evocut", "prunesid", "idpruner"}


def test_known_numbers():
    def value(**given):
        found = TABLE[(TABLE[list(given)] == pd.Series(given)).all(axis=1)]
        assert len(found) == 1, found
        return found["value"].item()

    assert value(paper="ID-Selection", method="idselection", tokens=16) == 91.8
    assert value(protocol="cdpruner", method="cdpruner", tokens=32, benchmark="POPE") == 87.1
    assert value(protocol="cdpruner", method="full", benchmark="VizWiz", metric="validation") == 55.6
    assert value(protocol="cdpruner", method="full", benchmark="VizWiz", metric="test") == 50.1
    assert value(protocol="sparsevlm", method="vscan", tokens=64, benchmark="MME") == 1698
    assert value(protocol="mmtok", method="visionzip", tokens=16, benchmark="POPE") == 51.8
    assert value(protocol="dcp-prune", method="visionzip", tokens=16, benchmark="POPE") == 66.6
    assert (
        value(protocol="angelslim", method="IDPruner", tokens=0.1, benchmark="average", backbone="Qwen2.5-VL-7B")
        == 86.47
    )


def test_methods_go_by_their_name_here_where_they_have_one():
    labels = {method.label for method in METHODS.values()}
    assert not labels & set(TABLE["method"])
    assert {"idselection", "fastv", "pyramiddrop", "full", "no-image", "EADP"} <= set(TABLE["method"])


def test_full_scores_of_a_protocol_agree_with_their_own_means():
    """The mean over nine scores, with MME divided by 20, is printed beside them."""
    table = TABLE[(TABLE["protocol"] == "cdpruner") & (TABLE["backbone"] == "LLaVA-NeXT-7B")]
    wide = table.pivot(index=["method", "tokens"], columns="benchmark", values="value")
    printed = wide.pop("average")
    wide["MME"] /= 20
    assert (wide.mean(axis=1) - printed).abs().max() < 0.11


ROW = {
    "paper": "P",
    "method": "fastv",
    "backbone": "LLaVA-1.5-7B",
    "benchmark": "GQA",
    "tokens": 64.0,
    "value": 50.0,
    "unit": "percent",
    "protocol": "p",
    "metric": "accuracy",
    "source": "P, Table 1",
    "note": "",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": ""}, "source is empty"),
        ({"metric": " "}, "metric is empty"),
        ({"unit": "%"}, "unit '%' is none of percent"),
        ({"value": "50a"}, "value '50a' is no number"),
        ({"value": 100.5}, "100.5 percent is not from 0 to 100"),
        ({"value": -1.0}, "is not from 0 to 100"),
        ({"tokens": 1.5}, "tokens must be a number of tokens, or a share"),
    ],
)
def test_numbers_that_are_not_what_they_should_be(change, message):
    with pytest.raises(ValueError, match=message):
        check_reported(pd.DataFrame([ROW | change]))


def test_a_number_that_is_there_twice_and_a_missing_column():
    check_reported(pd.DataFrame([ROW, ROW | {"tokens": 32.0}]))
    with pytest.raises(ValueError, match="a number is there twice"):
        check_reported(pd.DataFrame([ROW, ROW | {"value": 51.0, "note": "x"}]))
    with pytest.raises(ValueError, match="have the columns paper, method"):
        check_reported(pd.DataFrame([ROW]).drop(columns="source"))


def stored(task, **change):
    rows = pd.concat([make_rows(budgets=(576,), method="full"), make_rows(budgets=(64,), method="fastv")])
    rows = rows.assign(dataset=task, backbone="llava-hf/llava-1.5-7b-hf", correct=rows["correct"].astype(float))
    return rows.assign(**change).reset_index(drop=True)


def test_measured_rows_meet_the_same_benchmark_method_tokens_and_metric():
    rows = stored("gqa")
    beside = set_beside(
        pd.DataFrame([ROW, ROW | {"method": "full", "tokens": 576.0}, ROW | {"tokens": 32.0}]),
        measured_scores(rows, 50),
    )
    accuracy = 100 * rows.groupby("method")["correct"].mean()
    assert beside["measured"].tolist()[:2] == [accuracy["fastv"], accuracy["full"]] and pd.isna(beside["measured"][2])
    assert beside["difference"].tolist()[:2] == [accuracy["fastv"] - 50, accuracy["full"] - 50]
    assert (beside["low"] <= beside["measured"])[:2].all() and beside["tokens"].tolist() == [64, 576, 32]


def test_protocols_are_never_mixed():
    with pytest.raises(ValueError, match="different protocols must not be mixed; choose one of p, q"):
        set_beside(pd.DataFrame([ROW, ROW | {"protocol": "q"}]), measured_scores(stored("gqa"), 50))


def test_other_variants_of_a_metric_do_not_meet():
    table = pd.DataFrame([ROW | {"benchmark": "POPE", "metric": "F1"}, ROW | {"benchmark": "VizWiz", "metric": "test"}])
    vizwiz = measured_scores(stored("vizwiz_vqa_val"), 50)
    assert set_beside(table, vizwiz)["measured"].isna().all()
    (left_out,) = not_comparable(table, vizwiz).to_dict("records")
    assert (left_out["benchmark"], left_out["measured as"], left_out["reported as"]) == ("VizWiz", "validation", "test")
    pope = measured_scores(stored("pope", answer=["yes", "no"] * 12, prediction=["yes", "yes"] * 12), 50)
    assert set(pope["metric"]) == {"accuracy", "F1"}
    assert set_beside(table, pope)["measured"].tolist()[0] == pytest.approx(200 / 3)
    assert not_comparable(table, pope).empty


def test_budgets_of_another_kind_are_left_out():
    rows = stored("gqa")
    rows.loc[rows["method"] == "fastv", "convention"] = "final"
    assert set(measured_scores(rows, 50)["method"]) == {"full"}


def test_second_questions_of_a_conversation_are_left_out():
    rows = stored("gqa")
    second = rows.assign(conversation="kept alone", correct=1.0)
    measured = measured_scores(pd.concat([rows, second]), 50)
    pd.testing.assert_frame_equal(measured, measured_scores(rows, 50))
    assert measured_scores(second, 50).empty


def test_rows_of_several_settings_of_one_method_are_refused():
    rows = stored("gqa")
    other = rows.assign(gamma=5.0, importance="saliency")
    with pytest.raises(ValueError, match=r"method fastv.*budget 64.*importance: unified, saliency; gamma: 20.0, 5.0"):
        measured_scores(pd.concat([rows[rows["method"] == "fastv"], other[other["method"] == "fastv"]]), 50)
    coarse = rows.assign(dtype="float16, int4")
    with pytest.raises(ValueError, match=r"method full.*dtype: float16, float16, int4"):
        measured_scores(pd.concat([rows.assign(dtype="float16"), coarse]), 50)
    seeds = measured_scores(pd.concat([rows, rows.assign(seed=1, correct=1.0)]), 50).set_index("method")["measured"]
    alone = measured_scores(rows, 50).set_index("method")["measured"]
    pd.testing.assert_series_equal(seeds, (alone + 100) / 2)


def test_positions_are_those_of_the_family():
    rows = stored("gqa").assign(positions=lambda table: table["method"].map({"full": "compact", "fastv": "keep"}))
    assert set(measured_scores(rows, 50)["method"]) == {"full", "fastv"}  # as of Qwen, which has no compact ones
    compact = stored("gqa")
    both = pd.concat([compact, compact[compact["method"] == "fastv"].assign(positions="keep", correct=1.0)])
    pd.testing.assert_frame_equal(measured_scores(both, 50), measured_scores(compact, 50))
    lost = pd.concat([compact, compact[compact["method"] == "fastv"].assign(method="vscan", positions="keep")])
    with pytest.raises(ValueError, match=r"vscan at 64 on gqa, validation, .* with positions 'keep' alone"):
        measured_scores(lost, 50)


def test_mme_and_mmbench_are_known_but_stand_apart():
    table = pd.DataFrame([ROW | {"benchmark": "MME", "unit": "points", "metric": "perception"}])
    table = pd.concat([table, pd.DataFrame([ROW | {"benchmark": "MMBench"}])])
    for task, benchmark in (("mme", "MME"), ("mmbench_en_dev_static", "MMBench")):
        measured = measured_scores(stored(task), 50)
        assert set(measured["benchmark"]) == {benchmark}
        assert set_beside(table, measured)["measured"].isna().all()
        assert not_comparable(table, measured)["benchmark"].tolist() == [benchmark]


def test_a_mean_is_over_the_benchmarks_that_all_were_asked():
    gqa, mme, pope = stored("gqa"), stored("mme"), stored("pope", answer="yes", prediction="yes")
    mme.loc[mme["method"] == "full", "correct"] = 1.0
    more = gqa[gqa["method"] == "fastv"].assign(method="vscan", correct=1.0)
    rows = pd.concat([gqa, mme, pope[pope["method"] == "full"]])
    table = mean_over_benchmarks(rows, 50).set_index("method")

    def share(part):
        score = part.groupby("method")["correct"].mean()
        return score["fastv"] / score["full"]

    assert table.at["fastv", "share"] == pytest.approx(50 * (share(gqa) + share(mme)))
    assert table.at["full", "share"] == 100 and table.at["full", "tokens"] == 576
    assert table.at["fastv", "benchmarks"] == "gqa, mme" and table.at["fastv", "left out"] == "pope"
    assert table.at["fastv", "low"] <= table.at["fastv", "share"] <= table.at["fastv", "high"]
    alone = mean_over_benchmarks(pd.concat([gqa, more, mme]), 50).set_index("method")
    assert alone.at["fastv", "benchmarks"] == "gqa" and alone.at["fastv", "share"] == pytest.approx(100 * share(gqa))
    with pytest.raises(ValueError, match="no benchmark was asked with all methods and budgets; there are gqa, pope"):
        mean_over_benchmarks(pd.concat([gqa, pope[pope["method"] == "full"], more.assign(dataset="pope")]), 50)
    with pytest.raises(ValueError, match="a mean is of one backbone; there are embedded, llava-hf"):
        mean_over_benchmarks(pd.concat([gqa, gqa.assign(backbone="embedded")]), 50)


def test_all_tokens_may_be_of_different_numbers():
    rows = stored("gqa")
    whole = rows["method"] == "full"
    rows.loc[whole, "budget"] = range(500, 500 + whole.sum())
    measured = measured_scores(rows, 50).set_index("method")
    assert measured["questions"].to_dict() == {"full": 12, "fastv": 12}


def test_settings_may_have_been_asked_different_questions():
    rows = stored("gqa")
    fewer = rows[(rows["method"] == "full") | (rows["question_id"] < "q0006")]
    measured = measured_scores(fewer, 50).set_index("method")
    assert measured["questions"].to_dict() == {"full": 12, "fastv": 6}


def test_an_empty_store_meets_nothing():
    nothing = measured_scores(pd.DataFrame())
    assert nothing.empty
    table = TABLE[TABLE["protocol"] == "mmtok"]
    assert set_beside(table, nothing)["measured"].isna().all() and len(set_beside(table, nothing)) == len(table)
    assert not_comparable(TABLE, nothing).empty


def test_backbones_are_called_as_papers_call_them():
    assert called("llava-hf/llava-1.5-7b-hf") == "LLaVA-1.5-7B"
    assert called("llava-hf/llava-1.5-13b-hf") == "LLaVA-1.5-13B"
    assert called("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen2.5-VL-7B"
    assert called("llava-hf/llava-v1.6-vicuna-7b-hf") == "LLaVA-NeXT-7B"
    assert called("embedded") == "embedded"
    patterns = reported._BACKBONES
    assert set(TABLE["backbone"]) <= set(patterns)

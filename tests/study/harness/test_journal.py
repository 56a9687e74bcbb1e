"""The journal keeps what was answered, whatever is killed; settings, scores and templates mean what they say."""

import json

import pytest

from idsel_core.methods import get_method
from idsel_core.study.harness.journal import Journal, digest
from idsel_core.study.harness.rows import NoScore, chance_of, score_of
from idsel_core.study.harness.setting import Setting, setting_from
from idsel_core.study.harness.tasks import scoring
from idsel_core.study.metrics.yes_no import yes_no


def test_answers_of_the_same_key_are_found_again_and_others_are_not(tmp_path):
    path = tmp_path / "a/requests.jsonl"
    first = Journal(path, {"method": "a"})
    first.add("1", {"text": "yes"})
    Journal(path, {"method": "b"}).add("1", {"text": "no"})
    assert Journal(path, {"method": "a"}).get("1") == {"text": "yes"}
    assert Journal(path, {"method": "b"}).get("1") == {"text": "no"}
    assert Journal(path, {"method": "c"}).get("1") is None
    assert len(first) == 1


def test_a_torn_line_is_lost_alone(tmp_path):
    path = tmp_path / "requests.jsonl"
    whole = Journal(path, {})
    for name in "abc":
        whole.add(name, {"text": name})
    path.write_bytes(path.read_bytes()[:-9])
    resumed = Journal(path, {})
    assert [resumed.get(name) is not None for name in "abc"] == [True, True, False]
    resumed.add("c", {"text": "c"})
    assert len(Journal(path, {})) == 3
    # The torn line stays; it is no entry.
    assert sum(1 for line in path.read_text().splitlines() if line.endswith("}}")) == 3


def test_a_line_is_on_disk_when_add_returns(tmp_path):
    path = tmp_path / "requests.jsonl"
    journal = Journal(path, {"k": 1})
    journal.add("a", {"text": "ä", "layers": [1, 2]})
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {"key": digest({"k": 1}), "request": "a", "answer": {"text": "ä", "layers": [1, 2]}}


def test_a_journal_of_no_file_keeps_nothing():
    journal = Journal(None, {})
    journal.add("a", {"text": "yes"})
    assert journal.get("a") is None


def test_a_setting_has_the_knobs_that_were_given():
    assert setting_from() == Setting()
    assert setting_from("idselection", 64, knobs={"gamma": "5"}).method == get_method(
        "idselection", budget=64, gamma=5.0
    )
    assert setting_from("fastv", 0.5).title == "fastv at 0.5"
    assert setting_from("random", 8, positions="keep", budget_scope="tile").positions == "keep"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"method": "idselecton", "budget": 8}, "did you mean 'idselection'"),
        ({"method": "idselection"}, "idselection needs a budget"),
        ({"method": "idselection", "budget": 0}, "budget"),
        ({"method": "idselection", "budget": 8, "knobs": {"gama": 3}}, "did you mean 'gamma'"),
        ({"method": "full", "budget": 8}, "full keeps all visual tokens, so budget means nothing"),
        ({"knobs": {"gamma": 3}}, "so gamma means nothing"),
        ({"method": "random", "budget": 8, "positions": "new"}, "positions must be one of compact, keep"),
        ({"method": "fastv", "budget": 8, "budget_scope": "tile"}, "has no meaning"),
    ],
)
def test_a_wrong_setting_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        setting_from(**words)


def test_the_first_metric_that_scores_a_question_counts():
    assert score_of({"a": {"score": 1.0}, "b": 0.0}, ["a", "b"]) == ("a", 1.0)
    assert score_of({"submission": {"answer": "x"}, "exact_match": 0.6}, ["submission", "exact_match"])[1] == 0.6
    assert score_of({"seed_image": {"pred": "a", "answer": "A"}}, ["seed_image"])[1] == 1.0
    assert score_of({"mme_cognition_score": {"score": 0}}, ["mme_perception_score", "mme_cognition_score"])[1] == 0.0
    assert score_of({"relaxed_overall": True}, ["relaxed_overall"])[1] == 1.0
    for sample in ({"submission": {"answer": "x"}}, {"submission": 37.0}, {}):
        with pytest.raises(NoScore, match="submission"):
            score_of(sample, ["submission"])


def test_the_chance_of_a_guess():
    assert chance_of({}, "Yes") == 0.5
    assert chance_of({"A": "x", "B": "y", "C": "z", "D": "nan"}, "B") == pytest.approx(1 / 3)
    assert chance_of({"choices": ["x", "y", "z", "w"]}, "A") == 0.25
    assert chance_of({"choice_a": "x", "choice_b": "y", "choice_c": "z", "choice_d": "w"}, "A") == 0.25
    assert chance_of({"answers": ["x"] * 10}, "x") == 0.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes.", "yes"),
        ("No, it is not", "no"),
        ("I know nothing", ""),
        ("", ""),
        ("yes or no", "yes"),
        ("No, yes would be wrong", "no"),
        ("It is not yes but no", ""),
        ("There is no dog.", "no"),
    ],
)
def test_answers_to_hallusion_bench_are_read_by_the_rule_of_the_metric(text, said):
    doc = {
        "category": "VD",
        "subcategory": "map",
        "set_id": "0",
        "figure_id": "0",
        "question_id": "0",
        "gt_answer": "1",
    }
    value = scoring.hallusion_results(doc, [text])["aAcc"]
    assert value["prediction"] == said and value["score"] == yes_no(text, ["yes"]) == (said == "yes")
    assert scoring.hallusion_results({**doc, "gt_answer": "0"}, [text])["aAcc"]["score"] == yes_no(text, ["no"])


def test_hallusion_bench_is_scored_by_answer_question_and_figure():
    doc = {"category": "VD", "subcategory": "map", "set_id": "0"}
    said = [("0", "1", "Yes.", "1"), ("1", "1", "No, it is not", "1"), ("0", "2", "no", "0"), ("1", "2", "I see", "0")]
    results = [
        scoring.hallusion_results({**doc, "figure_id": figure, "question_id": question, "gt_answer": right}, [text])
        for figure, question, text, right in said
    ]
    assert [one["aAcc"]["score"] for one in results] == [1, 0, 1, 0]
    # Figure 0 is right throughout; each question is wrong about figure 1.
    assert scoring.hallusion_by_answer([one["aAcc"] for one in results]) == 50
    assert scoring.hallusion_by_question([one["qAcc"] for one in results]) == 0
    assert scoring.hallusion_by_figure([one["fAcc"] for one in results]) == 50
    # A question of category VS without a figure is no figure.
    blind = {**doc, "category": "VS", "figure_id": "0", "question_id": "1", "gt_answer": "1"}
    more = [*results, scoring.hallusion_results(blind, ["no"])]
    assert scoring.hallusion_by_figure([one["fAcc"] for one in more]) == 50
    assert scoring.hallusion_by_answer([one["aAcc"] for one in more]) == 40

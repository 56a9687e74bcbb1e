"""Metrics: their known traps, and the formulas of their papers written out."""

import itertools
import random
import statistics

import numpy as np
import pandas as pd
import pytest

from idsel_core.study.metrics import METRICS, chance, get_metric, score, score_each
from idsel_core.study.metrics.anls import anls, levenshtein
from idsel_core.study.metrics.choice_letter import choice_letter, chosen
from idsel_core.study.metrics.relaxed_accuracy import relaxed_accuracy
from idsel_core.study.metrics.text_match import contains, exact_match
from idsel_core.study.metrics.vqa_accuracy import normalised, vqa_accuracy
from idsel_core.study.metrics.yes_no import counts, f1, said

COLOURS = ["red", "dark red", "blue", "green"]


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("Red", "red", 1),
        (" red. ", "red", 1),
        ("dark  red", "dark red", 1),
        ("red", "dark red", 0),
        ("1.5", "15", 0),
        ("-5", "5", 0),
        ("a dog", "dog", 0),
        ("", "red", 0),
    ],
)
def test_exact_match(prediction, answer, right):
    assert exact_match(prediction, [answer]) == right
    assert exact_match(prediction, ["no such", answer]) == right


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("It is a cat.", "cat", 1),
        ("Category B", "cat", 0),
        ("There are 15 of them", "5", 0),
        ("There are 5.", "5", 1),
        ("It costs 1.5 euros", "5", 0),
        ("It costs 1,500 euros", "1", 0),
        ("In Rome, of course", "rome", 1),
        ("New  York City", "new york", 1),
        ("C++ it is", "c++", 1),
    ],
)
def test_contains_whole_words(prediction, answer, right):
    assert contains(prediction, [answer]) == right


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Two.", "2"),
        ("none", "0"),
        ("The dog", "dog"),
        ("a  man and an apple", "man and apple"),
        ("dont", "don't"),
        ("I couldntve", "i couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("$3.", "$3"),
        ("1,000", "1000"),
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("red, white", "red white"),
        ("what?", "what"),
        ("twenty one", "twenty 1"),
        ("its", "its"),
        ("line\nbreak\tand tab", "line break and tab"),
    ],
)
def test_answers_are_brought_to_the_form_of_vqa(text, form):
    assert normalised(text) == form


def leave_one_out(prediction, answers):
    """The formula: the mean over people of min(1, agreeing others / 3)."""
    shares = []
    for person in range(len(answers)):
        others = answers[:person] + answers[person + 1 :]
        shares.append(min(1, sum(other == prediction for other in others) / 3))
    return statistics.mean(shares)


@pytest.mark.parametrize("people", [4, 10])
def test_vqa_accuracy_is_the_mean_over_people(people):
    drawn = random.Random(0)
    for _ in range(200):
        answers = [drawn.choice(["cat", "dog", "bird"]) for _ in range(people)]
        assert vqa_accuracy("cat", answers) == pytest.approx(leave_one_out("cat", answers))


def test_vqa_accuracy_counts_people_and_not_spellings():
    assert [vqa_accuracy("Two", ["2"] * n + ["x"] * (10 - n)) for n in range(5)] == pytest.approx([0, 0.3, 0.6, 0.9, 1])
    assert vqa_accuracy("the dog.", ["dog"] * 10) == 1
    assert vqa_accuracy("two", ["Two"] * 10) == 1


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("105", "100", 1),
        ("95", "100", 1),
        ("105.1", "100", 0),
        ("-105", "-100", 1),
        ("100", "-100", 0),
        ("7%", "0.07", 1),
        ("7%", "7", 0),
        ("0", "0", 1),
        ("0.0001", "0", 0),
        ("Yes", "yes", 1),
        ("1,000", "1000", 0),
        (" 100 ", "100", 1),
        ("nan", "nan", 1),
        ("inf", "inf", 1),
        ("nan", "5", 0),
        ("2008", "2010", 1),
        ("", "5", 0),
    ],
)
def test_relaxed_accuracy(prediction, answer, right):
    assert relaxed_accuracy(prediction, [answer]) == right


def slow_distance(a, b):
    """Levenshtein's recursion, as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return slow_distance(a[1:], b[1:])
    return 1 + min(slow_distance(a[1:], b), slow_distance(a, b[1:]), slow_distance(a[1:], b[1:]))


def test_levenshtein_is_its_recursion():
    words = ["", "a", "ab", "ba", "abc", "bca", "abab", "cabb"]
    for a, b in itertools.product(words, words):
        assert levenshtein(a, b) == slow_distance(a, b)


@pytest.mark.parametrize(
    ("prediction", "answers", "value"),
    [
        ("Rome", ["rome"], 1),
        ("rom", ["rome"], 0.75),
        ("ro", ["rome"], 0),
        ("r", ["rome"], 0),
        ("rom", ["paris", "rome"], 0.75),
        ("", ["rome"], 0),
        ("new   york", ["New York"], 1),
    ],
)
def test_anls(prediction, answers, value):
    assert anls(prediction, answers) == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("Yes, there is.", "yes"),
        ("Yes, there is no doubt.", "yes"),
        ("No, yes would be wrong", "no"),
        ("No", "no"),
        ("There is no dog.", "no"),
        ("There isn't a dog", "no"),
        ("It is not", "no"),
        ("The answer is yes.", "yes"),
        ("I say yes and not no", None),
        ("A dog", None),
        ("Nothing", None),
        ("know", None),
        ("yesterday", None),
        ("Maybe. No.", None),
        ("", None),
    ],
)
def test_yes_or_no_is_read_from_a_sentence(text, answer):
    assert said(text) == answer


def test_f1_comes_from_sums_over_rows():
    predictions = ["yes", "yes", "no", "no", "perhaps", "perhaps", "Yes, it is"]
    answers = ["yes", "no", "yes", "no", "yes", "no", "yes"]
    table = counts(predictions, answers)
    precision, recall = 2 / 3, 2 / 4
    assert f1(table.sum(0)) == pytest.approx(2 * precision * recall / (precision + recall))
    assert f1(table.mean(0)) == pytest.approx(f1(table.sum(0)))
    assert np.isnan(f1([0, 0, 0]))
    assert f1([[1, 0, 0], [0, 1, 1]]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("**B**", 1),
        ("B. dark red", 1),
        ("(B) dark red", 1),
        ("B: because it is", 1),
        ("The answer is B.", 1),
        ("Answer: B", 1),
        ("The correct option is (B), not the others", 1),
        ("I would say (C)", 2),
        ("blue", 2),
        ("It is dark red.", 1),
        ("It is red.", 0),
        ("Surely B", 1),
        ("A", 0),
        ("a", 0),
        ("A dog", None),
        ("I think so", None),
        ("E", None),
        ("(E)", None),
        ("A or B", None),
        ("The answer is A or B", None),
        ("A, B", None),
        ("D. Both A and B", 3),
        ("(A) or (B)", None),
        ("red or blue", None),
        ("", None),
        ("infrared", None),
    ],
)
def test_a_choice_is_read_from_free_text(text, option):
    assert chosen(text, COLOURS) == option


def test_a_right_choice_is_given_by_letter_or_text():
    assert choice_letter("B", ["dark red"], COLOURS) == 1
    assert choice_letter("dark red", ["B"], COLOURS) == 1
    assert choice_letter("A", ["B"], COLOURS) == 0


@pytest.mark.parametrize(
    ("metric", "answers", "choices", "message"),
    [
        ("yes_no", ["maybe"], [], "must be yes or no"),
        ("yes_no", ["yes", "no"], [], "must be yes or no"),
        ("vqa_accuracy", ["a"] * 3, [], "answers of 4 or more people"),
        ("choice_letter", ["red"], [], "needs 2 to 26 choices, not 0"),
        ("choice_letter", ["black"], COLOURS, "neither one of the choices"),
        ("choice_letter", ["E"], COLOURS, "neither one of the choices"),
        ("choice_letter", ["A"], ["b", "a"], "the text of one choice and the letter of another"),
        ("choice_letter", ["A"], ["red", "Red"], "alike"),
        ("contains", ["."], [], "every text contains"),
    ],
)
def test_questions_that_a_metric_cannot_score(metric, answers, choices, message):
    assert message in get_metric(metric).misfit(answers, choices)


def questions(**columns):
    count = len(columns["answers"])
    return pd.DataFrame({"choices": [[]] * count, **columns})


@pytest.mark.parametrize("metric", METRICS)
def test_each_metric_says_1_for_the_right_answer_and_0_for_nothing(metric):
    right = {"yes_no": "yes", "choice_letter": "blue", "relaxed_accuracy": "12"}.get(metric, "blue")
    asked = questions(answers=[[right] * 10] * 2, choices=[["red", "blue"]] * 2)
    found = score(metric, [right, ""], asked)
    assert found.dtype == np.float64 and found.tolist() == [1, 0]
    assert METRICS[metric].misfit([right] * 10, ["red", "blue"]) == ""


def test_each_question_is_scored_by_its_own_metric():
    asked = questions(answers=[["yes"], ["yes"], ["10"]], metric=["yes_no", "equal", "relaxed_accuracy"])
    assert score_each(["Yes, it is", "Yes, it is", "10.2"], asked).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="2 predictions for 3 questions"):
        score_each(["yes", "no"], asked)


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match=r"unknown metric 'exactmatch', did you mean 'exact_match'\?"):
        score("exactmatch", ["a"], questions(answers=[["a"]]))


def test_chance():
    asked = questions(answers=[["a"]] * 3, choices=[["a", "b", "c", "d"], [], []], metric=["equal", "yes_no", "anls"])
    assert chance(asked).tolist() == [0.25, 0.5, 0]

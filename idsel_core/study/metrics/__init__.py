"""Metrics by name: how right an answer is, from 0 to 1.

====================  ====================================================================================
equal                 the answer, character by character
exact_match           the answer, without regard to case, spaces around it and a full stop behind it
contains              the answer stands in the prediction, as whole words
vqa_accuracy          how many of about ten people gave this answer (VQAv2, TextVQA, VizWiz)
relaxed_accuracy      a number within 5 %, else the words (ChartQA)
anls                  share of characters that are right, 0 below one half (DocVQA, InfoVQA)
yes_no                yes or no, also inside a sentence (POPE, MME, HallusionBench); see also `yes_no.f1`
choice_letter         the letter or the text of one of the options, also inside a sentence (MMBench, AI2D)
====================  ====================================================================================

A task of lmms-eval is scored by its own functions; its metric is called ``lmms:TASK``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from idsel_core.hints import did_you_mean
from idsel_core.study.metrics import anls, choice_letter, relaxed_accuracy, text_match, vqa_accuracy, yes_no


@dataclass(frozen=True)
class Metric:
    """How right an answer is, and which questions can be scored.

    Attributes
    ----------
    score : callable
        (prediction, right answers, choices) to a number from 0 to 1.
    misfit : callable
        (right answers, choices) to why a question cannot be scored by it; "" if it can.
    """

    score: Callable[[str, Sequence[str], Sequence[str]], float]
    misfit: Callable[[Sequence[str], Sequence[str]], str] = lambda answers, choices: ""


METRICS: Final = {
    "equal": Metric(text_match.equal),
    "exact_match": Metric(text_match.exact_match),
    "contains": Metric(text_match.contains, text_match.contains_misfit),
    "vqa_accuracy": Metric(vqa_accuracy.vqa_accuracy, vqa_accuracy.misfit),
    "relaxed_accuracy": Metric(relaxed_accuracy.relaxed_accuracy),
    "anls": Metric(anls.anls),
    "yes_no": Metric(yes_no.yes_no, yes_no.misfit),
    "choice_letter": Metric(choice_letter.choice_letter, choice_letter.misfit),
}
"""The metrics, by name."""


def get_metric(name: str) -> Metric:
    """Return a metric.

    Raises
    ------
    ValueError
        If there is none of this name; names those that there are.
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}{did_you_mean(name, METRICS, ';')} known: {', '.join(METRICS)}")
    return METRICS[name]


def score(metric: str, predictions: Sequence[str], questions: pd.DataFrame) -> NDArray[np.float64]:
    """Score answers by one metric.

    Parameters
    ----------
    metric : str
        One of `METRICS`, or ``lmms:TASK``.
    predictions : sequence of str
        What the model answered, in the order of the questions.
    questions : DataFrame
        Rows of ``Split.questions``: answers, choices; for a task of lmms-eval question_id.

    Returns
    -------
    array of float64 (n,)
        From 0 to 1.

    Raises
    ------
    ValueError
        If the metric is unknown, or there are more or fewer predictions than questions.
    """
    if len(predictions) != len(questions):
        raise ValueError(f"{len(predictions)} predictions for {len(questions)} questions; there must be one each")
    if metric.startswith("lmms:"):
        from idsel_core.study.metrics.lmms import score_task

        return score_task(metric.removeprefix("lmms:"), predictions, questions)
    rate = get_metric(metric).score
    asked = zip(predictions, questions["answers"], questions["choices"], strict=True)
    return np.array([rate(prediction, list(answers), list(choices)) for prediction, answers, choices in asked], float)


def score_each(predictions: Sequence[str], questions: pd.DataFrame) -> NDArray[np.float64]:
    """Score answers, each by the metric that its question names in the column `metric`; see `score`."""
    given, found = np.asarray(predictions, dtype=object), np.zeros(len(questions))
    if len(given) != len(questions):
        raise ValueError(f"{len(given)} predictions for {len(questions)} questions; there must be one each")
    for metric in questions["metric"].unique():
        these = (questions["metric"] == metric).to_numpy()
        found[these] = score(metric, list(given[these]), questions[these])
    return found


def chance(questions: pd.DataFrame) -> NDArray[np.float64]:
    """Return how often a guess is right, (n,), as the column `chance` says, or else the choices, or yes and no.

    It is 0 where any answer is allowed.
    """
    if "chance" in questions:
        return questions["chance"].to_numpy(dtype=np.float64)
    asked = zip(questions["choices"], questions["metric"], strict=True)
    return np.array([1 / len(choices) if len(choices) else 0.5 * (metric == "yes_no") for choices, metric in asked])

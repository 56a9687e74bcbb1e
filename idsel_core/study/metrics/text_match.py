"""Metrics that compare whole texts: equal, exact match, contains."""

from __future__ import annotations

import re
from collections.abc import Sequence


def equal(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 if the prediction is one of the answers, character by character, else 0."""
    return float(prediction in answers)


def exact_match(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 if the prediction is one of the answers but for case, white space and a closing full stop, else 0.

    This is how GQA's answers are compared by the authors of LLaVA. Other signs count: "1.5" is not "15".
    """
    return float(plain(prediction) in map(plain, answers))


def contains(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 if an answer stands in the prediction as whole words, without regard to case, else 0."""
    return float(any(holds(prediction, answer) for answer in answers))


def contains_misfit(answers: Sequence[str], choices: Sequence[str]) -> str:
    """Refuse answers of which nothing is left once case and full stops are gone."""
    bare = [answer for answer in answers if not plain(answer)]
    return f"every text contains the answer {bare[0]!r}" if bare else ""


def plain(text: str) -> str:
    """Return a text in lower case, with single spaces and without a closing full stop."""
    return " ".join(text.lower().split()).removesuffix(".").rstrip()


def holds(text: str, words: str) -> bool:
    """Tell whether words stand in a text, neither as a part of a longer word nor of a longer number."""
    pattern = rf"(?<!\w)(?<!\d[.,]){re.escape(plain(words))}(?!\w)(?![.,]\d)"
    return re.search(pattern, " ".join(text.lower().split())) is not None

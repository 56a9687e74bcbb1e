"""Yes or no: accuracy of each answer, and F1 over many."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

_NEGATIONS = {"no", "not", "none", "never", "cannot"}


def yes_no(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 if the prediction says yes or no as the right answer does, else 0; see `said`."""
    found = said(prediction)
    return float(found is not None and found == said(answers[0]))


def said(text: str) -> Literal["yes", "no"] | None:
    """Read yes or no from a text.

    A text that begins with yes or no says that: "Yes, there is no doubt" says yes. Otherwise the first sentence
    decides: with a yes and no negation it says yes, with a negation and no yes it says no ("There is no dog", "It
    isn't"). With both it says neither ("I say yes and not no"), and so does anything else.
    """
    words = re.findall(r"[a-z]+(?:['\u2019][a-z]+)?", re.split(r"[.!?\n]", text.strip().lower(), maxsplit=1)[0])
    if words and words[0] in ("yes", "no"):
        return "yes" if words[0] == "yes" else "no"
    negated = any(word in _NEGATIONS or word.replace("\u2019", "'").endswith("n't") for word in words)
    if ("yes" in words) == negated:
        return None
    return "no" if negated else "yes"


def misfit(answers: Sequence[str], choices: Sequence[str]) -> str:
    """Refuse questions whose right answer is neither yes nor no, or several that differ."""
    found = {" ".join(answer.lower().split()).rstrip(".") for answer in answers}
    return "" if found in ({"yes"}, {"no"}) else f"the answer must be yes or no, not {list(answers)}"


def counts(predictions: Sequence[str], answers: Sequence[str]) -> NDArray[np.float64]:
    """Return for each question whether it is a true yes, a false yes and a missed yes, (n, 3) of 0 and 1.

    Sums over any questions give F1, so rows of the store hold all that it needs. An answer that says neither is a
    missed yes where yes is right, and is not a false yes where no is right.
    """
    given, right = ([said(text) for text in texts] for texts in (predictions, answers))
    pairs = zip(given, right, strict=True)
    return np.array([(g == r == "yes", g == "yes" != r, r == "yes" != g) for g, r in pairs], dtype=np.float64).reshape(
        -1, 3
    )


def f1(sums: ArrayLike) -> NDArray[np.float64]:
    """Return F1 = 2 TP / (2 TP + FP + FN) from sums or means of `counts` along the last axis; NaN where all are 0.

    Source: Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models" (POPE), section 5: yes is
    the positive class.
    """
    hit, false, missed = np.moveaxis(np.asarray(sums, dtype=np.float64), -1, 0)
    whole = 2 * hit + false + missed
    return np.divide(2 * hit, whole, out=np.full_like(whole, np.nan), where=whole > 0)

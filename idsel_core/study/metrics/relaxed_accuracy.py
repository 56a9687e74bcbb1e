"""Relaxed accuracy, for answers that are read off a chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

_TOLERANCE = 0.05


def relaxed_accuracy(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 if a number is within 5 % of a right one, or a text equals a right one but for case; else 0.

    Source: Masry et al. 2022, "ChartQA", section 5, after Methani et al. 2020. As in the programs of the field, "7%" is
    0.07, a right answer of 0 must be met as text, and "1,000" is no number.
    """
    return float(any(_near(prediction.strip(), answer.strip()) for answer in answers))


def _near(prediction: str, answer: str) -> bool:
    given, right = _number(prediction), _number(answer)
    if given is not None and right:
        return abs(given - right) <= _TOLERANCE * abs(right)
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

"""Average normalised Levenshtein similarity, for answers that are read off a document."""

from __future__ import annotations

from collections.abc import Sequence

_THRESHOLD = 0.5


def anls(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return the similarity to the nearest answer: 1 - NL where NL < 0.5, else 0.

    NL is the Levenshtein distance divided by the length of the longer text, both in lower case and with single spaces.

    Source: Biten et al. 2019, "Scene Text Visual Question Answering", equation 1. At NL = 0.5 itself the equation says
    0; programs that compare the similarity with 0.5 say 0.5.
    """
    return max(_similarity(_folded(prediction), _folded(answer)) for answer in answers)


def _folded(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    distance = levenshtein(a, b) / longest if longest else 0.0
    return 1 - distance if distance < _THRESHOLD else 0.0


def levenshtein(a: str, b: str) -> int:
    """Return how many characters must be inserted, deleted or replaced to turn one text into the other."""
    if len(a) < len(b):
        a, b = b, a
    above = list(range(len(b) + 1))
    for row, left in enumerate(a, 1):
        line = [row]
        for column, right in enumerate(b, 1):
            line.append(min(above[column] + 1, line[-1] + 1, above[column - 1] + (left != right)))
        above = line
    return above[-1]

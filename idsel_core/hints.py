"""What is said behind a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str], otherwise: str = "") -> str:
    """Return ", did you mean 'X'?" for the nearest of the known words, and something else where none is near."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else otherwise

"""Word errors of transcripts."""

from __future__ import annotations

import functools
from typing import Any

import jiwer
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer


@functools.cache
def _normalizer() -> Any:
    # Without a list of British and American spellings: texts must not depend on it.
    normalizer: Any = EnglishTextNormalizer
    return normalizer({})


def normalised_words(text: str) -> str:
    """Return a text in lower case, without punctuation, with numbers as digits and contractions written out.

    Parameters
    ----------
    text : str
        English.

    Notes
    -----
    Source: the normalisation of the Whisper paper, arXiv 2212.04356, appendix C, as transformers has it.
    """
    normalised: str = _normalizer()(text)
    return normalised.strip()


def word_errors(reference: str, transcript: str) -> int:
    """Return how many words are substituted, left out or put in, at least, after normalisation.

    Parameters
    ----------
    reference, transcript : str
        What was said, and what was written.

    Raises
    ------
    ValueError
        If the reference has no word.
    """
    wanted = normalised_words(reference)
    if not wanted:
        raise ValueError(f"the reference {reference!r} has no word")
    found = jiwer.process_words(wanted, normalised_words(transcript))
    return int(found.substitutions + found.deletions + found.insertions)

"""The letter of an option, read from free text."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from idsel_core.study.metrics.text_match import holds, plain

LETTERS = string.ascii_uppercase


def choice_letter(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return 1 if the prediction names the right option by its letter or its text, else 0; see `chosen`."""
    found = chosen(prediction, choices)
    return float(found is not None and found in {right_option(answer, choices) for answer in answers})


def chosen(text: str, choices: Sequence[str]) -> int | None:
    """Return which option a text chooses, counted from 0; None if that cannot be told.

    Tried in this order; the first rule that names exactly one option decides, and one that names several, or a letter
    beyond the options, ends the search, as do letters in a row ("A or B"):

    1. the text is one letter or the text of one option: "B", "(b)", "B.", "red"
    2. it begins with a letter and a sign: "B. red", "(B) red", "B: because"
    3. letters behind "answer", "option" or "choice": "The answer is B."
    4. letters in brackets: "I would say (B)"
    5. texts of options, as whole words, without those inside a longer one: "It is dark red"
    6. capital letters that stand alone, except A and I, which are words: "Surely B"
    """
    folded = [plain(choice) for choice in choices]
    whole = plain(text).strip("()[]*. :")
    if len(whole) == 1 and whole.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(whole.upper())
    if plain(text) in folded:
        return folded.index(plain(text))
    for pattern in _LETTER_RULES:
        if _SEVERAL.match(text.strip()) or (pattern != _LETTER_RULES[0] and _SEVERAL.search(text)):
            return None
        named = {letter.upper() for letter in re.findall(pattern, text.strip())}
        if named:
            return _only(named, choices)
    found = [number for number, choice in enumerate(choices) if holds(text, choice)]
    longest = [n for n in found if not any(n != m and holds(folded[m], folded[n]) for m in found)]
    if longest:
        return longest[0] if len(longest) == 1 else None
    return _only(set(re.findall(r"(?<![\w'\u2019])[B-HJ-Z](?![\w'\u2019])", text)), choices)


_LETTER_RULES = (
    r"^[(\[*]*([A-Za-z])[)\]*]*[.:,)\]](?!\w)",
    r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?: is)?:?\s*[(\[*\"']*([A-Z])(?![\w'\u2019])",
    r"[(\[]([A-Z])[)\]]",
)


_SEVERAL = re.compile(r"[(\[]?\b[A-Z]\b[)\].]?\s*(?:,|/|&|\bor\b|\band\b)\s*[(\[]?\b[A-Z]\b")
"""Several letters in a row, such as "(A) or (B)"."""


def right_option(answer: str, choices: Sequence[str]) -> int | None:
    """Return which option a right answer means, by its letter or its text; None if none."""
    folded = [plain(choice) for choice in choices]
    if plain(answer) in folded:
        return folded.index(plain(answer))
    letter = plain(answer).strip("().").upper()
    return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS[: len(choices)] else None


def misfit(answers: Sequence[str], choices: Sequence[str]) -> str:
    """Refuse questions without options, with options that are alike, or whose answer is not among them."""
    folded = [plain(choice) for choice in choices]
    if not 2 <= len(choices) <= len(LETTERS):
        return f"it needs 2 to {len(LETTERS)} choices, not {len(choices)}"
    if len(set(folded)) < len(folded):
        return f"choices are alike: {list(choices)}"
    for answer in answers:
        found = right_option(answer, choices)
        letter = plain(answer).strip("().").upper()
        if found is None:
            return f"the answer {answer!r} is neither one of the choices {list(choices)} nor a letter of one"
        if len(letter) == 1 and letter in LETTERS[: len(choices)] and LETTERS.index(letter) != found:
            return f"the answer {answer!r} is the text of one choice and the letter of another: {list(choices)}"
    return ""


def _only(letters: set[str], choices: Sequence[str]) -> int | None:
    """Return the option of the only letter; None if there are several, or it is beyond the options."""
    letter = letters.pop() if len(letters) == 1 else ""
    return LETTERS.index(letter) if letter and letter in LETTERS[: len(choices)] else None

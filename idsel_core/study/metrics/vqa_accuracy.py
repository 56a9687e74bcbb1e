"""VQA accuracy, for questions that several people answered."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Final

_ENOUGH: Final = 3
"""People whose agreement makes an answer fully right."""

_ARTICLES: Final = {"a", "an", "the"}
_COUNTED: Final = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBERS: Final = {"none": "0", **{word: str(number) for number, word in enumerate(_COUNTED)}}
_SIGNS: Final = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTIONS: Final = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's
    won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def vqa_accuracy(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """Return the mean over people of min(1, n / 3), where n of the *other* people gave the predicted answer.

    With ten people this is 0, 0.3, 0.6, 0.9 or 1 for 0, 1, 2, 3 or more of them. Answers and prediction are brought to
    one form first (see `normalised`), always; the published program leaves them as they are where all people agree, and
    so misses "Two" where all said "two".

    Source: Antol et al. 2015, "VQA: Visual Question Answering", section 3, and the evaluation code published with it.
    """
    given = [normalised(answer) for answer in answers]
    said = Counter(given)[normalised(prediction)]
    # Those who gave the answer have one other person less who did.
    mean = said * min(1, (said - 1) / _ENOUGH) + (len(given) - said) * min(1, said / _ENOUGH)
    return mean / len(given)


def normalised(text: str) -> str:
    """Return an answer as VQA's evaluation compares it.

    Lower case; no full stops but before a digit; no other signs; no articles; number words as digits; apostrophes put
    back into contractions. A sign becomes a space where it stands between two letters alone ("black-white"), and
    vanishes where a space is beside it anywhere in the text, or the text has a comma between digits ("1,000").
    """
    text = " ".join(text.split())
    bare = text
    for sign in _SIGNS:
        vanishes = f"{sign} " in text or f" {sign}" in text or re.search(r"\d,\d", text)
        bare = bare.replace(sign, "" if vanishes else " ")
    bare = re.sub(r"\.(?!\d)", "", bare)
    words = [_NUMBERS.get(word, word) for word in bare.lower().split() if word not in _ARTICLES]
    return " ".join(_APOSTROPHES.get(word, word) for word in words)


def misfit(answers: Sequence[str], choices: Sequence[str]) -> str:
    """Refuse questions with so few answers that nobody could be fully right."""
    few = len(answers) <= _ENOUGH
    return f"it needs the answers of {_ENOUGH + 1} or more people, usually 10, not {len(answers)}" if few else ""


def _without_apostrophes(word: str) -> list[str]:
    """Return all ways to write a word with some of its apostrophes, the right one left out."""
    parts = word.split("'")
    spelled = itertools.product(*[("", "'")] * (len(parts) - 1))
    written = ["".join(itertools.chain(*zip(parts, [*marks, ""], strict=True))) for marks in spelled]
    return [one for one in written if one != word]


_APOSTROPHES: Final = {typed: word for word in _CONTRACTIONS.split() for typed in _without_apostrophes(word)}

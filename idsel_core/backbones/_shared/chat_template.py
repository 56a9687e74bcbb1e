"""Where a user's turn begins and ends in prompts, read off the chat template of a processor."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from idsel_core.backbones._shared.known_processors import tokenizer_of
from idsel_core.backbones._shared.made_up_chats import ANSWERS, QUESTIONS, Renderer, between, renderer
from idsel_core.backbones._shared.plain_form import PLACEHOLDER, SPECIALS, Plain, is_special

_KINDS = ("image", "video", "audio")


@dataclass(frozen=True)
class Turn:
    """The last user's turn of a prompt, in tokens.

    Attributes
    ----------
    words : list[bool]
        Which tokens are words of the user.
    end : int, optional
        The last token before the answer; None where no answer is opened.
    """

    words: list[bool]
    end: int | None


class ChatTemplate:
    """The marks with which a chat template surrounds what users and models say.

    They come from the template itself: made-up conversations are rendered with it, and what stands round their contents
    are the marks. Prompts and marks are compared in a plain form, the text of the tokens without white space, in which
    neither the merges of a tokenizer nor line breaks that a template strips matter; a special token is one character.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Tokenizer of the prompts.
    opens_question : str
        What stands in front of a user's words, plain.
    opens_answer : Sequence[str]
        What stands between a user's words and the answer, plain; in prompts to be answered, and in answered ones.
    blanks : int
        Tokens of white space alone at the end of a prompt to be answered.
    beside_images : Sequence[str]
        Regular expressions of what stands in front of an image, plain.
    """

    def __init__(
        self,
        tokenizer: Any,
        opens_question: str,
        opens_answer: Sequence[str],
        blanks: int = 0,
        beside_images: Sequence[str] = (),
    ) -> None:
        self.opens_question, self.opens_answer, self.blanks = opens_question, tuple(opens_answer), blanks
        self._plain = Plain(tokenizer)
        self._beside = re.compile(f"(?:{'|'.join(beside_images) or '(?!)'})(?={SPECIALS}*{PLACEHOLDER})")

    @classmethod
    def of(cls, processor: Any, beside_images: Sequence[str] = ()) -> ChatTemplate | None:
        """Read the chat template of a processor or tokenizer; None where it has none, or one without marks.

        Parameters
        ----------
        processor : ProcessorMixin or PreTrainedTokenizerBase
            Of the prompts.
        beside_images : Sequence[str]
            Regular expressions of what the processor, not the template, writes in front of an image, plain.
        """
        source = str([getattr(each, "chat_template", None) for each in (processor, tokenizer_of(processor))])
        return cls._read(processor, source, tuple(beside_images))

    @classmethod
    @functools.lru_cache(maxsize=8)
    def _read(cls, processor: Any, source: str, beside_images: tuple[str, ...]) -> ChatTemplate | None:
        """Read a chat template, which may be changed on a processor, and then has another source."""
        tokenizer = tokenizer_of(processor)
        render = renderer(processor)
        if render is None:
            return None
        plain = Plain(tokenizer)
        single, several = render(1, True), render(3, True)
        if single is None:
            return None
        before, after = between(single, None, QUESTIONS[0]), between(single, QUESTIONS[0], None)
        openings, closings = [plain.text(before)], [plain.text(after)]
        if several is not None:
            openings += [plain.text(between(several, ANSWERS[i], QUESTIONS[i + 1])) for i in (0, 1)]
            closings += [plain.text(between(several, QUESTIONS[0], ANSWERS[0]))]
        opening = functools.reduce(_common_ending, openings)
        closings = [mark for mark in dict.fromkeys(closings) if mark]
        if not opening or not closings:
            return None
        ids = tokenizer(after, add_special_tokens=False)["input_ids"]
        blanks = len(ids) - len(_without_blanks_behind([plain.unit(number) for number in ids]))
        beside = [mark for kind in _KINDS if (mark := _beside_image(render, plain, opening, kind))]
        return cls(tokenizer, opening, closings, blanks, list(dict.fromkeys([*beside, *beside_images])))

    def last_turn(self, ids: Sequence[int], placeholder: Sequence[bool], labelled: int | None = None) -> Turn | None:
        """Find the last user's turn among the tokens of a prompt; None where it has none.

        Parameters
        ----------
        ids : Sequence[int]
            Token ids without padding.
        placeholder : Sequence[bool]
            True at placeholders of images.
        labelled : int, optional
            The first token with a label: the turn is the last one that begins before it, or else the first one.
        """
        units = [
            PLACEHOLDER if image else self._plain.unit(number) for number, image in zip(ids, placeholder, strict=True)
        ]
        text = "".join(units)
        limit = len(text) if labelled is None else len("".join(units[:labelled]))
        begin = self._begin(text[:limit])
        if begin is None and labelled is not None:
            begin = self._first(text)
        if begin is None:
            return None
        found = [(place, -len(mark)) for mark in self.opens_answer if (place := text.find(mark, begin)) >= 0]
        stop, length = min(found, default=(max(limit, begin), 0))
        inside = [False] * begin + [True] * (stop - begin) + [False] * (len(text) - stop)
        for mark in self._beside.finditer(text, begin, stop):
            inside[mark.start() : mark.end()] = [False] * (mark.end() - mark.start())
        said = [inner and _is_said(each) for inner, each in zip(inside, text, strict=True)]
        words, place, last = [], 0, -1
        for token, unit in enumerate(units):
            words.append(True in said[place : place + len(unit)])
            place += len(unit)
            if unit and place <= stop - length:
                last = token
        if not found:
            return Turn(words, None)
        end = last
        while end + 1 < len(units) and end - last < self.blanks and not units[end + 1]:
            end += 1
        return Turn(words, end)

    def _begin(self, text: str) -> int | None:
        """Return where the words of the last user's turn begin."""
        place = text.rfind(self.opens_question)
        if place >= 0:
            return place + len(self.opens_question)
        return self._opened(text)

    def _first(self, text: str) -> int | None:
        """Return where the words of the first user's turn begin."""
        place, opened = text.find(self.opens_question), self._opened(text)
        found = [place + len(self.opens_question)] if place >= 0 else []
        return min([*found, *([] if opened is None else [opened])], default=None)

    def _opened(self, text: str) -> int | None:
        """Return where the words of a first turn begin, whose mark may lack what closes the turn before."""
        start = re.match(f"{SPECIALS}*", text)
        assert start is not None
        for cut in range(1, len(self.opens_question)):
            mark = self.opens_question[cut:]
            if (
                is_special(mark[0])
                and not all(map(is_special, mark))
                and (at := text.find(mark)) in range(start.end() + 1)
            ):
                return at + len(mark)
        return None


def _common_ending(one: str, two: str) -> str:
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one[::-1], two[::-1], strict=False))
    return "".join(unit for unit, _ in equal)[::-1]


def _beside_image(render: Renderer, plain: Plain, opening: str, kind: str) -> str | None:
    """Return a regular expression of the words that a template writes in front of an image, if it writes any."""
    text = render(1, True, (kind,))
    if text is None:
        return None
    _, _, words = plain.text(between(text, None, QUESTIONS[0])).rpartition(opening)
    found = re.match(f"[^\U000f0000-\U0010fffd]+(?={SPECIALS})", words)
    return None if found is None else re.sub(r"\d+", r"\\d+", re.escape(found[0]))


def _is_said(unit: str) -> bool:
    return unit != PLACEHOLDER and not is_special(unit)


def _without_blanks_behind(units: list[str]) -> list[str]:
    while units and not units[-1]:
        units = units[:-1]
    return units

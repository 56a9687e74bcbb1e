"""Where a user's turn begins and ends in prompts, read off the chat template of a processor."""

from __future__ import annotations

import functools
import itertools
import os
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import AutoProcessor, AutoTokenizer

PLACEHOLDER = "\ue000"
"""Stands for a placeholder of an image in the plain form of a prompt."""
_UNKNOWN = "\ufffd"
_SPECIAL = 0xF0000
"""First of the characters that stand for special tokens, from a private plane of Unicode."""
_SPECIALS = "[\U000f0000-\U0010fffd]"

_QUESTIONS, _ANSWERS = ("qqfirstqq", "qqsecondqq", "qqthirdqq"), ("aafirstaa", "aasecondaa")
_SYSTEM = "sssystemss"
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
        self._beside = re.compile(f"(?:{'|'.join(beside_images) or '(?!)'})(?={_SPECIALS}*{PLACEHOLDER})")

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
        render = _renderer(processor)
        if render is None:
            return None
        plain = Plain(tokenizer)
        single, several = render(1, True), render(3, True)
        if single is None:
            return None
        before, after = _between(single, None, _QUESTIONS[0]), _between(single, _QUESTIONS[0], None)
        openings, closings = [plain.text(before)], [plain.text(after)]
        if several is not None:
            openings += [plain.text(_between(several, _ANSWERS[i], _QUESTIONS[i + 1])) for i in (0, 1)]
            closings += [plain.text(_between(several, _QUESTIONS[0], _ANSWERS[0]))]
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
        start = re.match(f"{_SPECIALS}*", text)
        assert start is not None
        for cut in range(1, len(self.opens_question)):
            mark = self.opens_question[cut:]
            if (
                _is_special(mark[0])
                and not all(map(_is_special, mark))
                and (at := text.find(mark)) in range(start.end() + 1)
            ):
                return at + len(mark)
        return None


class Plain:
    """The plain form of tokens: their text without white space, and one character for a special token."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        special = sorted(set(tokenizer.all_special_ids) - {tokenizer.unk_token_id})
        self._units: dict[int, str] = {number: chr(_SPECIAL + place) for place, number in enumerate(special)}
        if tokenizer.unk_token_id is not None:
            self._units[tokenizer.unk_token_id] = _UNKNOWN

    def unit(self, number: int) -> str:
        """Return the plain form of a token."""
        if number not in self._units:
            text = self.tokenizer.decode([number], clean_up_tokenization_spaces=False)
            self._units[number] = "".join(text.split())
        return self._units[number]

    def text(self, text: str) -> str:
        """Return the plain form of a text."""
        return "".join(map(self.unit, self.tokenizer(text, add_special_tokens=False)["input_ids"]))


def tokenizer_of(processor: Any) -> Any:
    """Return the tokenizer of a processor, which may be one itself."""
    return getattr(processor, "tokenizer", processor)


def special_ids(processor: Any) -> set[int]:
    """Return the special tokens of a processor or tokenizer, but for unknown words."""
    tokenizer = tokenizer_of(processor)
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


_PROCESSORS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""Processors by model, None for a model that has none here."""
_LOOKING = threading.RLock()


def remember_processor(model: nn.Module, processor: Any) -> None:
    """Let `processor_of` know the processor of a model."""
    _PROCESSORS[model] = processor


def processor_of(model: Any) -> Any:
    """Return the processor, or the tokenizer, of a model; None if it is not known.

    It is the one that `remember_processor` was told, or lies with the weights in their folder or in the local cache of
    the hub. Nothing is downloaded, and no code of a checkpoint is run.
    """
    with _LOOKING:
        if model not in _PROCESSORS:
            _PROCESSORS[model] = _read_processor(model)
        return _PROCESSORS[model]


def _read_processor(model: Any) -> Any:
    name = getattr(model, "name_or_path", None) or getattr(model.config, "_name_or_path", None)
    if not name or (os.sep in str(name) and str(name).count("/") > 1 and not Path(name).is_dir()):
        return None
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if not Path(name).is_dir() and getattr(model.config, "_commit_hash", None):
        source["revision"] = model.config._commit_hash
    for read in (AutoProcessor, AutoTokenizer):
        # A processor may need a package that is missing, where its tokenizer does not; failing means not known.
        with suppress(Exception):
            found: Any = read.from_pretrained(name, **source)
            if hasattr(tokenizer_of(found), "all_special_ids"):
                return found
    return None


class _Renderer:
    """Renders made-up conversations by a chat template, whose contents are lists of parts or plain texts."""

    def __init__(self, owner: Any, parts: bool) -> None:
        self.owner, self.parts = owner, parts

    def _message(self, role: str, text: str, kinds: Sequence[str] = ()) -> dict[str, Any]:
        images = [{"type": kind, f"{kind}_url": ""} for kind in kinds]
        return {"role": role, "content": [*images, {"type": "text", "text": text}] if self.parts else text}

    def __call__(self, turns: int, open_answer: bool, kinds: Sequence[str] = ()) -> str | None:
        """Render so many questions with answers between them; None where the template cannot, or changes contents."""
        messages, said = [], []
        for turn in range(turns):
            messages.append(self._message("user", _QUESTIONS[turn], kinds))
            said.append(_QUESTIONS[turn])
            if turn + 1 < turns:
                messages.append(self._message("assistant", _ANSWERS[turn]))
                said.append(_ANSWERS[turn])
        # A template is a program of the checkpoint's authors, in a sandbox; it may fail in any way.
        try:
            text = self.owner.apply_chat_template(messages, add_generation_prompt=open_answer, tokenize=False)
        except Exception:
            return None
        if not isinstance(text, str) or any(text.count(part) != 1 for part in said) or "'text':" in text:
            return None
        return text


def _renderer(processor: Any) -> _Renderer | None:
    owners = [processor, tokenizer_of(processor)]
    for owner in dict.fromkeys(owners):
        if not hasattr(owner, "apply_chat_template"):
            continue
        for parts in (True, False):
            render = _Renderer(owner, parts)
            if render(1, True) is not None:
                return render
    return None


def _between(text: str, first: str | None, second: str | None) -> str:
    start = 0 if first is None else text.index(first) + len(first)
    return text[start:] if second is None else text[start : text.index(second)]


def _common_ending(one: str, two: str) -> str:
    equal = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one[::-1], two[::-1], strict=False))
    return "".join(unit for unit, _ in equal)[::-1]


def _beside_image(render: _Renderer, plain: Plain, opening: str, kind: str) -> str | None:
    """Return a regular expression of the words that a template writes in front of an image, if it writes any."""
    text = render(1, True, (kind,))
    if text is None:
        return None
    _, _, words = plain.text(_between(text, None, _QUESTIONS[0])).rpartition(opening)
    found = re.match(f"[^\U000f0000-\U0010fffd]+(?={_SPECIALS})", words)
    return None if found is None else re.sub(r"\d+", r"\\d+", re.escape(found[0]))


def _is_special(unit: str) -> bool:
    return ord(unit) >= _SPECIAL


def _is_said(unit: str) -> bool:
    return unit != PLACEHOLDER and not _is_special(unit)


def _without_blanks_behind(units: list[str]) -> list[str]:
    while units and not units[-1]:
        units = units[:-1]
    return units

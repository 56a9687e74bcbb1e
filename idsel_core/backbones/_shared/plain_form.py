"""The plain form of prompts: their text without white space, and one character for a special token."""

from __future__ import annotations

from typing import Any

PLACEHOLDER = "\ue000"
"""Stands for a placeholder of an image in the plain form of a prompt."""
_UNKNOWN = "\ufffd"
_SPECIAL = 0xF0000
"""First of the characters that stand for special tokens, from a private plane of Unicode."""
SPECIALS = "[\U000f0000-\U0010fffd]"
"""Regular expression of a special token."""


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


def is_special(unit: str) -> bool:
    """Return whether a character stands for a special token."""
    return ord(unit) >= _SPECIAL

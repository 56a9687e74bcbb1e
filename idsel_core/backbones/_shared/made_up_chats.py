"""Made-up conversations, rendered by a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from idsel_core.backbones._shared.known_processors import tokenizer_of

QUESTIONS, ANSWERS = ("qqfirstqq", "qqsecondqq", "qqthirdqq"), ("aafirstaa", "aasecondaa")
"""What users and models say in made-up conversations."""


class Renderer:
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
            messages.append(self._message("user", QUESTIONS[turn], kinds))
            said.append(QUESTIONS[turn])
            if turn + 1 < turns:
                messages.append(self._message("assistant", ANSWERS[turn]))
                said.append(ANSWERS[turn])
        # A template is a program of the checkpoint's authors, in a sandbox; it may fail in any way.
        try:
            text = self.owner.apply_chat_template(messages, add_generation_prompt=open_answer, tokenize=False)
        except Exception:
            return None
        if not isinstance(text, str) or any(text.count(part) != 1 for part in said) or "'text':" in text:
            return None
        return text


def renderer(processor: Any) -> Renderer | None:
    """Return what renders by the chat template of a processor, or of its tokenizer; None where neither can."""
    owners = [processor, tokenizer_of(processor)]
    for owner in dict.fromkeys(owners):
        if not hasattr(owner, "apply_chat_template"):
            continue
        for parts in (True, False):
            render = Renderer(owner, parts)
            if render(1, True) is not None:
                return render
    return None


def between(text: str, first: str | None, second: str | None) -> str:
    """Return what stands between two parts of a text, or in front of the second, or behind the first."""
    start = 0 if first is None else text.index(first) + len(first)
    return text[start:] if second is None else text[start : text.index(second)]

"""Who asks about the images of a prompt: the instruction's words, and the last token before the answer."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.chat_template import Turn
from idsel_core.backbones._shared.known_processors import special_ids
from idsel_core.backbones._shared.prompts import of_prompts
from idsel_core.scores.attention_rows import last_token
from idsel_core.visual_tokens import Slots

if TYPE_CHECKING:
    from idsel_core.backbones._shared.contract import Backbone


class Instruction:
    """The words that ask about the images of B prompts, and the end of each prompt; both are found when first read.

    The words are the user's own words of the turn that asks, in front of the images or behind them: no tokens of the
    chat template, no placeholders, no padding, no earlier turns and no answer. The turn that asks is the last user's
    turn before the answer. The end of a prompt is the last token before the answer: of what opens it, if the chat
    template does.

    In this order, words are those that the caller marked, those of the last user's turn by the chat template, or all
    text before the answer, with a warning that says so. Where tokens have labels, the turn is the one before the first
    of them, or the one that it stands in: labels on what a user says change nothing. Where neither the chat template
    nor what stands in front of the first label says a word, as with labels on everything, labels tell nothing.

    Parameters
    ----------
    backbone : Backbone
        Of the model; it knows the chat template.
    input_ids : Tensor
        Full prompts, int64 (B, L).
    real : Tensor
        False at padding, bool (B, L).
    slots : Slots
        Placeholders of the images.
    question_mask : Tensor, optional
        True, or not 0, at words that the caller names, (B, L).
    answer : Tensor, optional
        True at tokens that are known to be of an answer, bool (B, L). The prompt ends before the first of them.
    answered : bool
        Whether an answer may stand behind the prompt, where `answer` does not tell.

    Raises
    ------
    ValueError
        If `question_mask` is not (B, L), marks no token of a prompt, or marks part of the answer.
    """

    def __init__(
        self,
        backbone: Backbone,
        input_ids: Tensor,
        real: Tensor,
        slots: Slots,
        question_mask: Tensor | None = None,
        answer: Tensor | None = None,
        answered: bool = False,
    ) -> None:
        self._backbone, self.input_ids, self._real = backbone, input_ids, real
        self._answer, self._answered = answer, answered
        self._placeholder = backbone.placeholders(input_ids)
        self._slots = slots
        # (B, L): columns before the first token of an answer.
        self._before = real if answer is None else real & ((answer & real).cumsum(1) == 0)
        self._marked = None if question_mask is None else self._checked(question_mask)

    @property
    def text(self) -> Tensor:
        """Tokens of the prompts that are no placeholders, bool (B, L)."""
        return self._real & ~self._placeholder

    @functools.cached_property
    def _of_image(self) -> Tensor:
        """Columns of images, with what stands between the tiles of one, bool (B, L)."""
        columns, place = self._slots.columns, self._place
        # (I, L): columns from the first to the last placeholder of an image, which come in order, before padding.
        within = (place >= columns[:, :1]) & (place <= columns.amax(1, keepdim=True))
        return self._placeholder | of_prompts(within, self._slots.rows, len(self._placeholder))

    @functools.cached_property
    def words(self) -> Tensor:
        """True at the instruction's words, bool (B, L)."""
        if self._marked is not None:
            beyond = self._marked & (self._place > self._last)
            if bool(beyond.any()):
                row = int(beyond.any(1).int().argmax())
                raise ValueError(f"question_mask marks tokens of the answer of prompt {row}")
            return self._marked
        known = [turn is not None for turn in self._turns]
        words = torch.zeros_like(self._real) if all(known) else self._said & self._asking
        for row, turn in enumerate(self._turns):
            if turn is not None:
                words[row].masked_scatter_(self._real[row], torch.tensor(turn.words, device=words.device))
        if not all(known) and self._backbone.has_chat_template:
            self._backbone.warn_of_question("all text of the prompt asks about its images")
        return words & ~self._of_image

    @functools.cached_property
    def ends(self) -> Tensor:
        """True at the last token before the answer, one a prompt, bool (B, L)."""
        if self._backbone.has_chat_template and any(
            turn is None or turn.end is None for turn, told in zip(self._turns, self._told, strict=True) if not told
        ):
            self._backbone.warn_of_question("the last token asks, of the answer where one stands behind the prompt")
        return self._ends

    @property
    def behind(self) -> Tensor:
        """True at text behind the end of each prompt, as far as it is known, bool (B, L)."""
        return self.text & (self._place > self._last)

    @property
    def _ends(self) -> Tensor:
        """True at the last token before the answer, bool (B, L)."""
        return self._place == self._last

    @functools.cached_property
    def _last(self) -> Tensor:
        """Column of the last token before the answer, int64 (B, 1)."""
        last = (self._place * self._asking).amax(1, keepdim=True)
        for row, turn in enumerate(self._turns):
            if turn is not None and turn.end is not None:
                last[row] = self._columns(row)[turn.end]
        return last

    @functools.cached_property
    def _place(self) -> Tensor:
        """The columns, int64 (L,)."""
        return torch.arange(self._real.shape[1], device=self._real.device)

    @functools.cached_property
    def _turns(self) -> list[Turn | None]:
        template = self._backbone.chat_template
        if template is None:
            return [None] * len(self.input_ids)
        turns = []
        known = (self.input_ids, self._placeholder, self._real, self._before)
        for ids, placeholder, real, before in zip(*(each.tolist() for each in known), strict=True):
            read, labelled = list(itertools.compress(ids, real)), sum(before)
            images = list(itertools.compress(placeholder, real))
            turns.append(template.last_turn(read, images, labelled if labelled < len(read) else None))
        return turns

    def _columns(self, row: int) -> Tensor:
        """Return the columns of a prompt that are no padding, int64."""
        return self._real[row].nonzero()[:, 0]

    @functools.cached_property
    def _said(self) -> Tensor:
        """Mask of the text that is no special token, as far as those are known, bool (B, L)."""
        known = torch.tensor(sorted(self._special()), device=self.input_ids.device)
        return self._real & ~self._of_image & ~torch.isin(self.input_ids, known)

    @functools.cached_property
    def _led(self) -> Tensor:
        """True at prompts whose first token of an answer tells where it begins, bool (B,): it has words in front."""
        if self._answer is None or not self._backbone.has_chat_template:
            return torch.ones_like(self._real[:, 0])
        return (self._said & self._before).any(1)

    @functools.cached_property
    def _told(self) -> list[bool]:
        """Of each prompt, whether it is known where an answer begins behind it, if any does."""
        if self._answer is None:
            return [not self._answered] * len(self._real)
        return self._led.tolist()

    @property
    def _asking(self) -> Tensor:
        """Columns that may ask where no chat template tells: those before the answer, bool (B, L)."""
        return self._real if self._answer is None else self._before.where(self._led[:, None], self._real)

    def _special(self) -> set[int]:
        backbone = self._backbone
        named = [backbone.model.config, backbone.model.generation_config]
        known = set() if backbone.processor is None else special_ids(backbone.processor)
        return known.union(*map(_ids_in, named))

    def _checked(self, mask: Any) -> Tensor:
        mask = torch.as_tensor(mask)
        if mask.shape != self.input_ids.shape:
            raise ValueError(
                f"question_mask must be {tuple(self.input_ids.shape)}, like input_ids, not {tuple(mask.shape)}"
            )
        mask = mask.to(self.input_ids.device).bool() & self._real & ~self._placeholder
        silent = self._of_image.any(1) & ~mask.any(1)
        if bool(silent.any()):
            raise ValueError(f"question_mask marks no text of prompt {int(silent.int().argmax())}")
        return mask


def _ids_in(config: Any) -> Iterator[int]:
    """Yield the token ids that a configuration names, those of its parts too."""
    for name, value in (config if isinstance(config, dict) else vars(config)).items():
        if isinstance(value, dict) or hasattr(value, "to_dict"):
            yield from _ids_in(value)
        elif str(name).endswith(("_token_id", "_token_index")):
            yield from (number for number in (value if isinstance(value, list) else [value]) if number is not None)


def up_to(ends: Tensor) -> Tensor:
    """Mark the columns up to the end of each prompt, bool (B, L), given the ends, bool (B, L)."""
    return ends.flip(1).long().cumsum(1).flip(1) > 0


def moved(marks: Tensor, text: Tensor, short_text: Tensor) -> Tensor:
    """Return marks of text tokens as those of the same prompts with fewer placeholders, bool (B, W).

    Parameters
    ----------
    marks, text : Tensor
        Of the full prompts, bool (B, L); `text` is True at tokens that are no placeholders.
    short_text : Tensor
        The same of the shortened prompts, bool (B, W): as many True a prompt, in their order.
    """
    short = torch.zeros_like(short_text)
    short[short_text] = marks[text].to(short.device)
    return short


def moved_ends(ends: Tensor, text: Tensor, real: Tensor, short_text: Tensor) -> Tensor:
    """Return the ends of prompts as those of the same prompts with fewer placeholders, bool (B, W).

    Where a prompt ends in an image, it goes on to end there, or before it if nothing of the image is left.

    Parameters
    ----------
    ends, text : Tensor
        Of the full prompts, bool (B, L); `text` is True at tokens that are no placeholders.
    real, short_text : Tensor
        Of the shortened prompts, bool (B, W): False at padding, and as `text`.
    """
    short = moved(ends & text, text, short_text)
    count = (text & up_to(ends)).sum(1, keepdim=True).to(short.device)
    return torch.where(short.any(1, keepdim=True), short, last_token(real & (short_text.cumsum(1) <= count)))

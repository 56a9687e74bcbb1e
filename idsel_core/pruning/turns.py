"""Calls that go on from the cache of a pruned call: a conversation's next turn, or a step of decoding by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones import Backbone
from idsel_core.backbones._shared.caches import cache_in
from idsel_core.backbones._shared.prompts import PER_TOKEN
from idsel_core.backbones._shared.shortened_caches import prompts_of
from idsel_core.pruning.arguments import check_tensors, setting_of
from idsel_core.pruning.cut_prompts import CutPrompts, name_of, pixels_number
from idsel_core.pruning.preconditions import check_window


@dataclass(frozen=True, eq=False)
class NextTurn:
    """A call that goes on from a cache of shortened prompts.

    Attributes
    ----------
    inputs : dict[str, Any]
        Arguments of ``generate`` or ``forward`` that fit the cache.
    prompts : CutPrompts
        What the cache knows, a row for each row of the call.
    read : Tensor
        Which columns behind the prompts are no padding, the new ones among them, bool (B, T).
    said : Tensor
        The tokens of these columns, int64 (B, T), -1 where they are not known.
    """

    inputs: dict[str, Any]
    prompts: CutPrompts
    read: Tensor
    said: Tensor


def next_turn(backbone: Backbone, inputs: Mapping[str, Any], generating: bool) -> NextTurn | None:
    """Return a call that goes on from a cache of shortened prompts as one that fits it; None for other calls.

    The caller may give the whole conversation, which begins with the prompts as they were given, or the new tokens
    alone. `attention_mask` may have a column for each new token, for each token in the cache and each new one, or for
    each token of the whole conversation.

    Parameters
    ----------
    backbone : Backbone
        Of the model.
    inputs : Mapping[str, Any]
        Arguments of ``generate`` or ``forward``.
    generating : bool
        Of ``generate``.

    Raises
    ------
    ValueError
        If the cache is another model's, or the arguments do not fit it; the message says what to do.
    """
    cache = cache_in(inputs)
    prompts: CutPrompts | None = prompts_of(cache)
    if prompts is None:
        return None
    pixels = backbone.pixel_inputs
    check_tensors(dict(inputs), ("inputs_embeds", *PER_TOKEN, *pixels))
    ids, cached = inputs.get("input_ids"), int(cache.get_seq_length())
    if prompts.model != name_of(backbone.model):
        raise ValueError(
            "the cache was filled with shortened prompts by another model (a copy is another one): go on from it "
            "inside a block of that model"
        )
    if prompts.trouble:
        raise ValueError(f"the cache {prompts.trouble}: {_ANEW}")
    if ids is None and (generating or inputs.get("inputs_embeds") is None):
        raise ValueError("going on from a shortened cache needs input_ids")
    if prompts.searched and cached > prompts.width:
        raise ValueError(
            f"the cache holds the beams of a search, not the answers that it returned: crop() the "
            f"{cached - prompts.width} tokens behind the prompt, or {_ANEW}"
        )
    if inputs.get("question_mask") is not None:
        raise ValueError(
            f"question_mask can change nothing in a call that goes on from a shortened cache, whose visual tokens were "
            f"selected before: leave it out, or {_ANEW}"
        )
    prompts = _rows_of_the_call(backbone, inputs, prompts, cached, generating)
    call = _Call(backbone, dict(inputs), prompts, cached)
    marks = None if ids is None else backbone.placeholders(ids)
    whole = marks is not None and bool(marks.any())
    if whole and ids is not None and marks is not None:
        call.check_conversation(ids, marks)
    elif any(inputs.get(name) is not None for name in pixels):
        raise ValueError("prune() cannot add an image to a cache that holds tokens; give the whole prompt at once")
    new = call.new_columns(whole)
    seen = call.seen(whole, new)
    types = _last(inputs.get("token_type_ids"), new)
    if backbone.text_looks_ahead and types is not None and new > 1 and bool((types == 0).any()):
        raise ValueError(
            f"token_type_ids are 0 at new text, so the prompt in the cache would have to attend to it: give 1 there, "
            f"then it attends to what is before it, or {_ANEW}"
        )
    if backbone.position_axes == 1 and prompts.keeps_positions:
        length = int((prompts.real.sum(1) + seen[:, prompts.width :].sum(1)).max())
        check_window(backbone, dict(inputs), generating, length)
    return NextTurn(
        call.arguments(whole, new, seen, generating),
        prompts,
        seen[:, prompts.width :],
        call.said(new),
    )


_ANEW = "give the whole conversation with its images and no cache"


def _last(values: Any, columns: int) -> Any:
    return None if values is None else values[..., -columns:]


def _rows_of_the_call(
    backbone: Backbone, inputs: Mapping[str, Any], prompts: CutPrompts, cached: int, generating: bool
) -> CutPrompts:
    """Return one row of a cache for each row of the call, of which ``generate`` may read several copies."""
    given = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    names = ("num_beams", "num_return_sequences") if generating else ()
    copies = max((setting_of(backbone.model, dict(inputs), name) or 1 for name in names), default=1)
    if len(prompts) == len(given) * copies:
        return _one_of_each(prompts, copies, cached - prompts.width) if copies > 1 else prompts
    if copies > 1 and len(prompts) == len(given):
        raise ValueError(
            f"generate() reads {copies} copies of each prompt, of which the cache holds one: call "
            f"batch_repeat_interleave({copies}) of the cache before"
        )
    raise ValueError(f"the cache holds {len(prompts)} pruned prompts, but {len(given) * copies} go on from it")


def _one_of_each(prompts: CutPrompts, copies: int, later: int) -> CutPrompts:
    """Return the first of so many copies of each prompt, behind which the cache holds `later` columns."""
    firsts = torch.arange(0, len(prompts), copies)
    first = prompts.take(firsts.repeat_interleave(copies))
    read, said = prompts.known_later(later), prompts.known_said(later)
    known = first.known_later(later), first.known_said(later)
    other = (prompts.origin != first.origin) | (read != known[0]).any(1)
    # Tokens that are not known, such as those of embeddings, may be any.
    other |= (((said != known[1]) | (said < 0)) & read).any(1)
    other[::copies] = False
    if bool(other.any()):
        row = int(other.int().argmax())
        raise ValueError(
            f"generate() would read {copies} rows of the cache as copies of one prompt, but row {row} is none of row "
            f"{row // copies * copies}, such as another sample's answer: give each row of the cache a row of input_ids "
            f"with num_beams=1 and num_return_sequences=1, or take one of each by batch_select_indices() and repeat it"
        )
    return prompts.take(firsts)


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of a call beside the B prompts of its cache, which holds `cached` columns."""

    backbone: Backbone
    inputs: dict[str, Any]
    prompts: CutPrompts
    cached: int

    def check_conversation(self, ids: Tensor, marks: Tensor) -> None:
        """Refuse a whole conversation that is not that of the cache."""
        given, real = self.prompts.given.to(ids.device), self.prompts.real.to(ids.device)
        width = given.shape[1]
        if ids.shape[1] < width or bool(((ids[:, :width] != given) & real).any()):
            raise ValueError(
                "the conversation holds images, but does not begin with the prompts that the cache was filled with, "
                f"column by column: append new text to what generate() returned, or {_ANEW}"
            )
        held = min(max(0, self.cached - self.prompts.width), ids.shape[1] - width)
        known = self.prompts.known_said(held).to(ids.device)
        again = ids[:, width : width + known.shape[1]]
        real = self.prompts.known_later(known.shape[1]).to(ids.device)
        if bool(((again != known) & (known >= 0) & real).any()):
            raise ValueError(
                "the conversation goes on from other tokens than those in the cache, such as an answer that was edited "
                f"or tokenised anew: append new text to what generate() returned, or {_ANEW}"
            )
        if bool(marks[:, width:].any()):
            raise ValueError("prune() cannot add an image to a cache that holds tokens; give the whole prompt at once")
        pixels = [name for name in self.backbone.pixel_inputs if self.inputs.get(name) is not None]
        if pixels:
            number = pixels_number(self.backbone, self.inputs)
            if self.prompts.pixels is None or not torch.equal(number, self.prompts.pixels.to(number.device)):
                raise ValueError(f"{pixels[0]} holds other images than those that the cache was filled with: {_ANEW}")

    def new_columns(self, whole: bool) -> int:
        """Return how many columns the cache does not hold."""
        ids = self.inputs.get("input_ids")
        if not whole:
            return int((self.inputs["inputs_embeds"] if ids is None else ids).shape[1])
        assert ids is not None
        new = self.prompts.width + int(ids.shape[1]) - self.prompts.given.shape[1] - self.cached
        if new < 1:
            raise ValueError(
                f"the conversation has {ids.shape[1]} columns, all of which the cache holds already: append new text, "
                f"or crop() the cache"
            )
        return new

    def seen(self, whole: bool, new: int) -> Tensor:
        """Return which columns, those in the cache and the new ones, are no padding, bool (B, cached + new)."""
        prompts, mask = self.prompts, self.inputs.get("attention_mask")
        later = self.cached - prompts.width
        device = prompts.seen.device
        if mask is None:
            return torch.nn.functional.pad(
                torch.cat([prompts.seen, prompts.known_later(later)], 1), (0, new), value=True
            )
        if mask.ndim != 2:
            raise ValueError(f"attention_mask must be (prompts, tokens), not {tuple(mask.shape)}")
        mask = mask.bool().to(device).expand(len(prompts), -1)
        for before in (prompts.real, prompts.seen):
            if mask.shape[1] == before.shape[1] + later + new:
                if not torch.equal(mask[:, : before.shape[1]], before):
                    raise ValueError(
                        "attention_mask hides other columns of the prompts than in the call that filled the cache"
                    )
                return torch.cat([prompts.seen, mask[:, before.shape[1] :]], 1)
        if mask.shape[1] == new and not whole:
            return torch.cat([prompts.seen, prompts.known_later(later), mask], 1)
        raise ValueError(
            f"attention_mask has {mask.shape[1]} columns, but the shortened cache and the new tokens have "
            f"{self.cached} + {new}, and the whole conversation {prompts.real.shape[1] + later + new}"
        )

    def said(self, new: int) -> Tensor:
        """Return the tokens of the columns behind the prompts, int64 (B, T), -1 where they are not known."""
        before, ids = self.prompts.known_said(self.cached - self.prompts.width), self.inputs.get("input_ids")
        if ids is None:
            return torch.nn.functional.pad(before, (0, new), value=-1)
        return torch.cat([before, ids[:, -new:].to(before)], 1)

    def arguments(self, whole: bool, new: int, seen: Tensor, generating: bool) -> dict[str, Any]:
        """Return the arguments that the model takes."""
        inputs, prompts, ids = self.inputs, self.prompts, self.inputs.get("input_ids")
        dropped = {*self.backbone.image_inputs, *PER_TOKEN} - {"input_ids", "labels"}
        changed = {name: value for name, value in inputs.items() if name not in dropped}
        if whole:
            assert ids is not None
            text = ids[:, prompts.given.shape[1] :]
            changed["input_ids"] = torch.cat([prompts.short.to(ids.device), text], 1) if generating else ids[:, -new:]
        if inputs.get("labels") is not None:
            changed["labels"] = _last(inputs["labels"], new)
        if generating or not bool(seen.all()):
            changed["attention_mask"] = seen.long()
        changed["position_ids"] = self._positions(new, seen, generating)
        return changed

    def _positions(self, new: int, seen: Tensor, generating: bool) -> Tensor:
        given = self.inputs.get("position_ids")
        if given is not None:
            if generating or given.shape[-1] != new:
                raise ValueError(
                    f"position_ids must be those of the {new} new tokens, and only model(...) takes them: prune() "
                    f"knows where a shortened cache ends"
                )
            return _last(given, new)
        ends, behind = self.prompts.ends, seen[:, self.prompts.width :]
        # (B, W) and (B, T): positions in the cache are not read again, but columns are counted.
        later = (ends[:, -1:] + behind.cumsum(1) - 1).clamp_min(0)
        positions = torch.cat([ends - 1, later], 1)
        positions = positions if generating else positions[:, -new:] + self.backbone.first_position
        if self.backbone.position_axes == 1:
            return positions
        text = (seen.cumsum(1) - 1).clamp_min(0)[:, -positions.shape[1] :]
        return torch.stack([text, *[positions] * self.backbone.position_axes])

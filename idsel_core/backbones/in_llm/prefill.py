"""The pass that reads the prompts and drops tokens between layers."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from idsel_core.backbones._shared.caches import cache_in
from idsel_core.backbones._shared.instruction import up_to
from idsel_core.backbones._shared.prompts import of_images, of_prompts, text_after
from idsel_core.backbones._shared.qk_capture import CapturedQK, attention_modules, capture_qk
from idsel_core.backbones._shared.shortened_caches import SPANS_ATTRIBUTE
from idsel_core.backbones._shared.stopwatch import stopwatch
from idsel_core.backbones.in_llm.checks import check_cache
from idsel_core.backbones.in_llm.columns import ColumnLine, dense_positions
from idsel_core.backbones.in_llm.decode import Span
from idsel_core.backbones.in_llm.passage import Drop, Plan
from idsel_core.methods._shared.in_llm import Choice, LayerTokens
from idsel_core.methods._shared.ragged import gather_tokens, sort_indices
from idsel_core.scores.attention_rows import last_token
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import Slots


class PromptPass:
    """The pass that reads the prompts, of which each may stand in several copies (beams) one behind the other.

    Choices are made on the first copy of each prompt.
    """

    def __init__(self, decoder: Any, plan: Plan, embeddings: Tensor, mask: Tensor | None, stack: ExitStack) -> None:
        self.decoder, self.plan, self.stack = decoder, plan, stack
        prompts, self.width = plan.placeholder.shape
        self.copies, odd = divmod(embeddings.shape[0], prompts)
        # Candidates of assisted decoding are read behind the prompt.
        self.behind = embeddings.shape[1] - self.width
        if odd or self.behind < 0 or (self.behind and prompts > 1) or (mask is not None and mask.ndim != 2):
            raise ValueError(
                f"{plan.method.name} drops tokens while the prompt is read, whole and once; got "
                f"{tuple(embeddings.shape[:2])} of {(prompts, self.width)} tokens (no prefill_chunk_size, no mask of "
                f"four axes)"
            )
        device = embeddings.device
        self.real = torch.ones(prompts, embeddings.shape[1], dtype=torch.bool, device=device)
        if mask is not None:
            self.real = mask[:: self.copies].bool().to(device)
        self.rows, self.columns = plan.slots.rows.to(device), plan.slots.columns.to(device)
        # (B, L): the prompt up to its end, without the answer that may stand behind it.
        asked = self.real[:, : self.width] & up_to(plan.ends.to(device))
        self.inside = nn.functional.pad(asked, (0, self.behind))
        text = text_after(Slots(self.rows, self.columns), asked & ~plan.placeholder.to(device))
        prompt = LayerTokens(
            states=embeddings[:: self.copies][self.rows, : self.width],
            columns=self.columns,
            real=self.real[self.rows, : self.width],
            text=text,
            query_tokens=torch.zeros_like(text),
            words=None if plan.words is None else plan.words.to(device)[self.rows],
            ends=last_token(asked)[self.rows],
        )
        with torch.no_grad():
            query_tokens = plan.method.query_tokens(prompt)
        self.text, self.query_tokens = (nn.functional.pad(marks, (0, self.behind)) for marks in (text, query_tokens))
        self.numbers = plan.passage.entering.indices[:, : self.columns.shape[1]].to(device)
        # (B, L): column of the prompt that each column was.
        self.origin = torch.arange(embeddings.shape[1], device=device).expand(self.real.shape)
        self.shift = torch.zeros(prompts, 1, dtype=torch.long, device=device)
        self.positions: Tensor | None = None
        self.changes: dict[str, Any] = {}
        self.spans: list[Span] = []
        self.watch: ExitStack | None = None
        self.seen: CapturedQK | None = None

    def several_axes(self, positions: Tensor | None) -> None:
        """Take positions (axes, copies of prompts, L) from a decoder whose layers are not given them."""
        if positions is not None and "mrope_section" in (getattr(self.decoder.config, "rope_parameters", None) or {}):
            axes = positions[-3:] if positions.ndim == 3 else positions.expand(3, *positions.shape)
            self.positions = axes.expand(3, len(self.real) * self.copies, -1)[:, :: self.copies]

    def before_layer(self, index: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Return the states (B, L, D) and the changed arguments that layer `index` reads; drop tokens before some."""
        now = {**given, **self.changes}
        if index in self.plan.places:
            hidden = self._drop(index, hidden, now)
            if self.watch is not None:
                self.watch.close()
        if self.plan.method.attention_from == "before" and index + 1 in self.plan.places:
            self.watch = self.stack.enter_context(ExitStack())
            self.seen = self.watch.enter_context(capture_qk(attention_modules(self.decoder)[index]))
        return hidden, self.changes

    def _drop(self, index: int, hidden: Tensor, now: dict[str, Any]) -> Tensor:
        """Drop tokens before a layer whose arguments would be `now`; return the states that are left."""
        plan, cache = self.plan, cache_in(now)
        if cache is not None:
            check_cache(cache)
        positions = now.get("position_ids") if self.positions is None else self.positions
        known = positions is not None and (positions.ndim == 2 or self.positions is not None)
        if positions is None or not known or now.get("position_embeddings") is None:
            raise ValueError(
                f"{type(self.decoder).__name__} gives its layers no position embeddings of known axes, so tokens "
                f"cannot be dropped between them"
            )
        lengths = (self.columns >= 0).sum(1)
        counts = plan.counts[:, plan.places.index(index)].to(hidden.device)
        if bool((counts >= lengths).all()):
            plan.passage.drops.append(Drop(index, lengths, plan.passage.left, 0.0))
            return hidden
        if self.positions is None:
            self.positions = positions.expand(len(hidden), -1)[:: self.copies]
        with stopwatch(hidden.device) as milliseconds, torch.no_grad():
            tokens = LayerTokens(
                states=hidden[:: self.copies][self.rows],
                columns=self.columns,
                real=self.real[self.rows],
                text=self.text,
                query_tokens=self.query_tokens,
                ends=last_token(self.inside)[self.rows],
                read=functools.partial(self._read, index, hidden, now),
                norm=self.decoder.norm,
            )
            choice = plan.method.choose(tokens, counts.minimum(lengths))
        if choice.merged is not None and positions.ndim == 3:
            raise ValueError(
                f"{plan.method.name} merges tokens, which have no place where positions have several axes; let it drop "
                f"them alone"
            )
        hidden = self._keep(hidden, choice)
        kept = _numbered(choice, self.numbers, plan.passage.left)
        self._renumber(choice)
        plan.passage.drops.append(Drop(index, (self.columns >= 0).sum(1), kept, milliseconds()))
        self._change(index, hidden, cache)
        return hidden

    def _read(self, index: int, hidden: Tensor, now: dict[str, Any]) -> tuple[Tensor, Tensor, float]:
        """Return queries, keys and scale that the method reads, of the first copy of each image's prompt."""
        if self.plan.method.attention_from == "before":
            assert self.seen is not None
            query, key, scale = self.seen.tensors()
            query, key = query[:: self.copies], key[:: self.copies]
        else:
            places = now.get("position_ids")
            first = {
                "position_ids": None if places is None else places.expand(len(hidden), -1)[:: self.copies],
                "position_embeddings": tuple(
                    part.expand(len(hidden), -1, -1)[:: self.copies] for part in now["position_embeddings"]
                ),
            }
            query_tokens = of_prompts(self.query_tokens, self.rows, len(self.real))
            with capture_qk(attention_modules(self.decoder)[index], query_tokens) as seen:
                self.decoder.layers[index].forward(
                    hidden[:: self.copies], attention_mask=None, use_cache=False, **first
                )
            query, key, scale = seen.tensors()
        return of_images(query, self.rows), of_images(key, self.rows), scale

    def _keep(self, hidden: Tensor, choice: Choice) -> Tensor:
        """Apply a choice to all that has one column a token; return the states that are left."""
        assert self.positions is not None
        line = ColumnLine(self.real, self.rows, self.columns, choice)
        order = line.order
        if choice.merged is not None:
            new = hidden.new_zeros(len(self.real), line.added, hidden.shape[2])
            new[self.rows[:, None].expand_as(line.slots), line.slots - hidden.shape[1]] = choice.merged.to(hidden)
            hidden = torch.cat([hidden, new.repeat_interleave(self.copies, 0)], 1)
        hidden = gather_tokens(hidden, order.repeat_interleave(self.copies, 0))
        if self.positions.ndim == 3:
            # No token can be numbered anew.
            self.positions = torch.stack([line.positions(axis, False)[0] for axis in self.positions])
        else:
            self.positions, moved = line.positions(self.positions, self.plan.method.positions == "compact")
            self.shift = self.shift + moved
        self.real = line.real
        stretched = (nn.functional.pad(marks, (0, line.added)) for marks in (self.text, self.query_tokens))
        self.text, query_tokens = (marks.gather(1, order[self.rows]) & self.real[self.rows] for marks in stretched)
        self.inside = self._inside(line).gather(1, order) & self.real
        self.origin = self._origin(line).gather(1, order)
        # A prompt may end in an image, whose last token may go.
        last = last_token(self.inside)[self.rows]
        self.query_tokens = torch.where(query_tokens.any(1, keepdim=True), query_tokens, last)
        self.columns = line.columns
        return hidden

    def _inside(self, line: ColumnLine) -> Tensor:
        """Mark columns up to the end of the prompt, bool (B, L + merged); merged tokens are where their image is."""
        first = self.columns[:, :1].clamp_min(0)  # (I, 1)
        own = self.inside[self.rows].gather(1, first).expand_as(line.slots)
        inside = nn.functional.pad(self.inside, (0, line.added))
        return inside.index_put((self.rows[:, None].expand_as(line.slots), line.slots), own)

    def _origin(self, line: ColumnLine) -> Tensor:
        """Return the column of the prompt that each one was, int64 (B, L + merged); merged tokens end their image."""
        last = (
            self.origin[self.rows]
            .gather(1, self.columns.clamp_min(0))
            .where(self.columns >= 0, -1)
            .amax(1, keepdim=True)
        )
        origin = nn.functional.pad(self.origin, (0, line.added))
        return origin.index_put((self.rows[:, None].expand_as(line.slots), line.slots), last.expand_as(line.slots))

    def widened(self, states: Tensor) -> Tensor:
        """Return the last states (B, W, D) with a column for each of the prompt, (B, L, D).

        A token that was dropped gets the state of the last one before it that is left, which predicts what follows.
        """
        # New padding stands in front of all else, or behind it.
        origin = self.origin.masked_fill(~self.real & (self.real.cumsum(1) == 0), -1)
        origin = origin.masked_fill(~self.real & (self.real.cumsum(1) > 0), self.width + 1)
        wanted = torch.arange(self.width, device=origin.device).expand(len(origin), -1)
        found = torch.searchsorted(origin.contiguous(), wanted.contiguous(), right=True) - 1
        return gather_tokens(states, found.clamp_min(0))

    def _renumber(self, choice: Choice) -> None:
        picks = sort_indices(choice.order, self.numbers.shape[1])
        numbers = self.numbers.gather(1, picks.clamp_min(0)).masked_fill(picks < 0, -1)
        # Merged tokens stand behind the kept ones of their image and have no number.
        width = self.columns.shape[1]
        self.numbers = nn.functional.pad(numbers, (0, max(width - numbers.shape[1], 0)), value=-1)[:, :width]

    def _change(self, index: int, hidden: Tensor, cache: Any) -> None:
        """Say what this layer and those behind it read from now on, and note it at the cache."""
        assert self.positions is not None
        real, shift = (x.repeat_interleave(self.copies, 0) for x in (self.real, self.shift))
        positions = self.positions.repeat_interleave(self.copies, -2)
        # Candidates behind the prompt are no part of it.
        inside = real[:, : real.shape[1] - self.behind]
        self.spans.append(Span(index, self.width, inside, shift))
        self.changes = {
            # By position: the cache has two names in transformers.
            "attention_mask": create_causal_mask(self.decoder.config, hidden, None if bool(real.all()) else real, None),
            "position_embeddings": self.decoder.rotary_emb(hidden, positions),
            "position_ids": dense_positions(real),
        }
        if cache is not None:
            vars(cache)[SPANS_ATTRIBUTE] = tuple(self.spans)


def _numbered(choice: Choice, numbers: Tensor, before: Selection) -> Selection:
    """Return a choice among tokens of these numbers (I, N), -1 for merged ones, as a selection."""
    order = numbers.gather(1, choice.order.clamp_min(0)).masked_fill(choice.order < 0, -1)
    stands = order >= 0
    order = order.gather(1, stands.byte().sort(dim=1, descending=True, stable=True).indices)
    size = before.scores.shape[1]
    scores = torch.full((len(order), size + 1), -torch.inf, device=order.device)
    scores = scores.scatter(1, numbers.where(numbers >= 0, size), choice.scores.float())[:, :size]
    return Selection.from_order(order[:, : int(stands.sum(1).max())], scores, before.requested)

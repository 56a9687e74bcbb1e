"""Hooks that let visual tokens leave between layers of the language model, and later steps go on without them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer
from transformers.masking_utils import create_causal_mask

from idsel_core.backbones.attention import Watched, attention_modules, watch
from idsel_core.backbones.base import Backbone
from idsel_core.backbones.sequence import Slots, cache_in, of_images, of_prompts, surviving_columns, text_after
from idsel_core.importance import last_token
from idsel_core.methods import Method
from idsel_core.methods.in_llm import Choice, InLLM, LayerTokens, drops_inside
from idsel_core.methods.steps import ascending, take
from idsel_core.selection import Selection
from idsel_core.tokens import VisualTokens

_NOTE = "idsel_spans"
"""Attribute of a cache: the `Span`s that its layers were filled in."""


@dataclass(frozen=True, eq=False)
class Drop:
    """What happened before one layer.

    Attributes
    ----------
    layer : int
        The first layer that reads what is left.
    counts : Tensor
        Tokens left of each image, merged ones among them, int64 (I,).
    selection : Selection
        Those of them that were not merged, numbered as the tokens that the method saw before the language model.
    milliseconds : float
        Wall time of the choice with its scores.
    """

    layer: int
    counts: Tensor
    selection: Selection
    milliseconds: float


@dataclass(eq=False)
class Passage:
    """How the visual tokens of one call pass through the language model.

    Attributes
    ----------
    entering : Selection
        The tokens that enter it.
    depth : int
        Its layers.
    drops : list[Drop]
        What was dropped so far; complete once the prompt was read.
    """

    entering: Selection
    depth: int
    drops: list[Drop] = field(default_factory=list)

    @property
    def left(self) -> Selection:
        """The tokens that are left after the last drop; merged ones have no number and are not among them."""
        return self.drops[-1].selection if self.drops else self.entering

    @property
    def layers(self) -> Tensor:
        """Tokens that each layer reads of each image, int64 (I, depth)."""
        counts = [self.entering.counts] * self.depth
        for drop in self.drops:
            counts[drop.layer :] = [drop.counts.to(self.entering.counts.device)] * (self.depth - drop.layer)
        return torch.stack(counts, 1)


@contextmanager
def dropping(
    backbone: Backbone, method: Method, tokens: VisualTokens, selection: Selection, prompts: Mapping[str, Any]
) -> Iterator[Passage]:
    """Let a method drop visual tokens inside the language model in the one call of the model that follows.

    The call may be ``generate`` or ``forward``, on prompts from `Backbone.shorten`. Methods that choose before the
    language model alone pass through untouched.

    Parameters
    ----------
    backbone : Backbone
        Of the model.
    method : Method
        Of any kind; only an `InLLM` acts.
    tokens : VisualTokens
        Of the call's images.
    selection : Selection
        What the method selected from `tokens`.
    prompts : Mapping[str, Any]
        The arguments of the call, with ``input_ids``.

    Yields
    ------
    Passage
        Filled while the prompt is read.

    Raises
    ------
    ValueError
        If the budget cannot be reached, or the language model or its cache is of a kind that does not allow it.
    """
    passage = Passage(selection, backbone.decoder_layers)
    if not drops_inside(method):
        yield passage
        return
    check_decoder(backbone.language_model)
    plan = _Plan(
        method=method,
        slots=backbone.locate(prompts["input_ids"], selection.counts, tokens.video, prompts.get("attention_mask")),
        placeholder=backbone.placeholders(prompts["input_ids"]),
        places=method.places(passage.depth),
        counts=method.counts(tokens.lengths, selection.counts, passage.depth),
        passage=passage,
    )
    with _hooks(backbone.language_model, plan):
        yield passage


@contextmanager
def following(backbone: Backbone, cache: Any) -> Iterator[None]:
    """Let calls of the model go on from a cache that was filled under `dropping`; other caches are not touched."""
    if not getattr(cache, _NOTE, ()):
        yield
        return
    with _hooks(backbone.language_model, None):
        yield


def check_decoder(decoder: Any) -> None:
    """Raise ValueError unless tokens can leave between the layers of this language model."""
    name = type(decoder).__name__
    if hasattr(decoder, "_orig_mod"):
        raise ValueError(
            "tokens cannot be dropped inside a language model that torch.compile() has wrapped: compile it in place, "
            "by language_model.compile(), or leave it as it is"
        )
    missing = [part for part in ("layers", "norm", "rotary_emb") if not hasattr(decoder, part)]
    if missing:
        raise ValueError(f"tokens cannot be dropped inside {name}, which lacks {', '.join(missing)}")
    kinds = set(getattr(decoder.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds or getattr(decoder.config, "sliding_window", None) is not None:
        raise ValueError(f"tokens cannot be dropped inside {name}, whose layers do not all attend to the whole prompt")
    if getattr(decoder.config, "use_bidirectional_attention", None):
        raise ValueError(f"tokens cannot be dropped inside {name}, whose tokens attend to later ones")
    if decoder.training and getattr(decoder, "gradient_checkpointing", False):
        raise ValueError("tokens cannot be dropped under gradient checkpointing, which runs layers twice")


def check_cache(cache: Any) -> None:
    """Raise ValueError unless the layers of a cache may differ in length."""
    kinds: set[Any] = {type(layer) for layer in cache.layers} or {getattr(cache, "layer_class_to_replicate", None)}
    if kinds != {DynamicLayer}:
        raise ValueError(
            f"tokens can be dropped inside the language model with a DynamicCache, whose layers may differ in length, "
            f"not with {type(cache).__name__}"
        )


@contextmanager
def stopwatch(device: torch.device) -> Iterator[Callable[[], float]]:
    """Time the block in milliseconds, with the work that it queued on a GPU."""
    times: list[float] = []

    def stamp() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    stamp()
    yield lambda: (times[1] - times[0]) * 1e3
    stamp()


@dataclass(frozen=True, eq=False)
class Span:
    """Layers that read the same columns of a prompt.

    Attributes
    ----------
    first : int
        The first of these layers; the last one is that before the next span.
    width : int
        Columns of the whole prompt.
    real : Tensor
        Columns that the layers read: false at padding, bool (R, W).
    shift : Tensor
        How far the positions of all that follows moved down, int64 (R, 1).
    """

    first: int
    width: int
    real: Tensor
    shift: Tensor

    @functools.cached_property
    def padded(self) -> bool:
        """Whether there is padding."""
        return not bool(self.real.all())

    @functools.cached_property
    def moved(self) -> bool:
        """Whether positions moved."""
        return bool(self.shift.any())


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is to happen to I images in B prompts."""

    method: InLLM
    slots: Slots
    placeholder: Tensor  # (B, L)
    places: tuple[int, ...]
    counts: Tensor  # (I, places)
    passage: Passage


@contextmanager
def _hooks(decoder: Any, plan: _Plan | None) -> Iterator[None]:
    with ExitStack() as stack:
        hooks = _Hooks(decoder, plan, stack)
        handles = [decoder.register_forward_pre_hook(hooks.before_decoder, with_kwargs=True)]
        for index, layer in enumerate(decoder.layers):
            before_layer = functools.partial(hooks.before_layer, index)
            handles.append(layer.register_forward_pre_hook(before_layer, with_kwargs=True))
        for handle in handles:
            stack.callback(handle.remove)
        yield


class _Hooks:
    """Before each pass through the decoder, find out what kind it is; before each layer, give it its share."""

    def __init__(self, decoder: Any, plan: _Plan | None, stack: ExitStack) -> None:
        self.decoder, self.plan, self.stack = decoder, plan, stack
        self.began = False
        self.reading: _Reading | None = None
        self.step: _Step | None = None

    def before_decoder(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.reading = self.step = None
        cache, mask = cache_in(kwargs), kwargs.get("attention_mask")
        if cache is not None and cache.get_seq_length():
            spans: tuple[Span, ...] = getattr(cache, _NOTE, ())
            if spans:
                self.step = _Step(self.decoder, spans, mask)
            return
        if cache is not None:
            vars(cache).pop(_NOTE, None)
        if self.plan is not None and not self.began:
            if cache is not None:
                check_cache(cache)
            planes = len(kwargs.get("deepstack_visual_embeds") or ())
            if planes > self.plan.places[0]:
                raise ValueError(
                    f"{self.plan.method.name} cannot drop tokens before layer {self.plan.places[0]}, because planes of "
                    f"them enter the first {planes} layers of this language model; choose layers from {planes} on"
                )
            self.began = True
            self.reading = _Reading(self.decoder, self.plan, kwargs["inputs_embeds"], mask, self.stack)
            self.reading.several_axes(kwargs.get("position_ids"))
        elif self.plan is not None and cache is None:
            raise ValueError(
                f"{self.plan.method.name} drops tokens while the prompt is read once: generate() needs use_cache=True"
            )

    def before_layer(
        self, index: int, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        now = self.reading or self.step
        if now is None:
            return None
        hidden, changes = now.before_layer(index, args[0] if args else kwargs["hidden_states"], kwargs)
        if not args:
            return args, {**kwargs, **changes, "hidden_states": hidden}
        return (hidden, *args[1:]), {**kwargs, **changes}


class _Reading:
    """The pass that reads the prompts, of which each may stand in several copies (beams) one behind the other.

    Choices are made on the first copy of each prompt.
    """

    def __init__(self, decoder: Any, plan: _Plan, embeddings: Tensor, mask: Tensor | None, stack: ExitStack) -> None:
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
        asked = self.real[:, : self.width]
        text = text_after(Slots(self.rows, self.columns), asked & ~plan.placeholder.to(device))
        prompt = LayerTokens(
            states=embeddings[:: self.copies][self.rows, : self.width],
            columns=self.columns,
            real=asked[self.rows],
            text=text,
            asking=torch.zeros_like(text),
        )
        with torch.no_grad():
            asking = plan.method.asking(prompt)
        self.text, self.asking = (nn.functional.pad(marks, (0, self.behind)) for marks in (text, asking))
        self.numbers = plan.passage.entering.indices[:, : self.columns.shape[1]].to(device)
        self.shift = torch.zeros(prompts, 1, dtype=torch.long, device=device)
        self.positions: Tensor | None = None
        self.changes: dict[str, Any] = {}
        self.spans: list[Span] = []
        self.watch: ExitStack | None = None
        self.seen: Watched | None = None

    def several_axes(self, positions: Tensor | None) -> None:
        """Take positions (axes, copies of prompts, L) from a decoder whose layers are not given them."""
        if positions is not None and "mrope_section" in (getattr(self.decoder.config, "rope_parameters", None) or {}):
            axes = positions[-3:] if positions.ndim == 3 else positions.expand(3, *positions.shape)
            self.positions = axes.expand(3, len(self.real) * self.copies, -1)[:, :: self.copies]

    def before_layer(self, index: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        now = {**given, **self.changes}
        if index in self.plan.places:
            hidden = self._drop(index, hidden, now)
            if self.watch is not None:
                self.watch.close()
        if self.plan.method.reads == "before" and index + 1 in self.plan.places:
            self.watch = self.stack.enter_context(ExitStack())
            self.seen = self.watch.enter_context(watch(attention_modules(self.decoder)[index]))
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
                asking=self.asking,
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
        if self.plan.method.reads == "before":
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
            asking = of_prompts(self.asking, self.rows, len(self.real))
            with watch(attention_modules(self.decoder)[index], asking) as seen:
                self.decoder.layers[index].forward(
                    hidden[:: self.copies], attention_mask=None, use_cache=False, **first
                )
            query, key, scale = seen.tensors()
        return of_images(query, self.rows), of_images(key, self.rows), scale

    def _keep(self, hidden: Tensor, choice: Choice) -> Tensor:
        """Apply a choice to all that has one column a token; return the states that are left."""
        assert self.positions is not None
        line = _Line(self.real, self.rows, self.columns, choice)
        order = line.order
        if choice.merged is not None:
            new = hidden.new_zeros(len(self.real), line.added, hidden.shape[2])
            new[self.rows[:, None].expand_as(line.slots), line.slots - hidden.shape[1]] = choice.merged.to(hidden)
            hidden = torch.cat([hidden, new.repeat_interleave(self.copies, 0)], 1)
        hidden = take(hidden, order.repeat_interleave(self.copies, 0))
        if self.positions.ndim == 3:
            # No token can be numbered anew.
            self.positions = torch.stack([line.positions(axis, False)[0] for axis in self.positions])
        else:
            self.positions, moved = line.positions(self.positions, self.plan.method.positions == "compact")
            self.shift = self.shift + moved
        self.real = line.real
        stretched = (nn.functional.pad(marks, (0, line.added)) for marks in (self.text, self.asking))
        self.text, asking = (marks.gather(1, order[self.rows]) & self.real[self.rows] for marks in stretched)
        # A prompt may end in an image, whose last token may go.
        width = self.real.shape[1]
        last = nn.functional.pad(last_token(self.real[:, : width - self.behind]), (0, self.behind))
        self.asking = torch.where(asking.any(1, keepdim=True), asking, last[self.rows])
        self.columns = line.columns
        return hidden

    def _renumber(self, choice: Choice) -> None:
        picks = ascending(choice.order, self.numbers.shape[1])
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
            "position_ids": _dense(real),
        }
        if cache is not None:
            vars(cache)[_NOTE] = tuple(self.spans)


class _Step:
    """A pass that goes on from a cache whose layers read different columns of the prompts."""

    def __init__(self, decoder: Any, spans: tuple[Span, ...], mask: Tensor | None) -> None:
        if mask is not None and mask.ndim != 2:
            raise ValueError(f"attention_mask must be (prompts, tokens), not {tuple(mask.shape)}")
        self.decoder, self.spans, self.mask = decoder, spans, mask
        self.changes: dict[int, dict[str, Any]] = {}

    def before_layer(self, index: int, hidden: Tensor, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        span = next((span for span in reversed(self.spans) if span.first <= index), None)
        if span is None:
            return hidden, {}
        if span.first not in self.changes:
            self.changes[span.first] = self._changes(span, index, hidden, given)
        return hidden, self.changes[span.first]

    def _changes(self, span: Span, index: int, hidden: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        if len(span.real) != len(hidden):
            raise ValueError(f"the cache holds {len(span.real)} pruned prompts, but {len(hidden)} go on from it")
        layer = cache_in(given).layers[index]
        behind = layer.get_seq_length() + hidden.shape[1] - span.real.shape[1]
        mask = None
        if span.padded or self.mask is not None:
            tail = torch.ones(len(hidden), behind, dtype=torch.bool, device=hidden.device)
            if self.mask is not None:
                tail = self.mask[:, span.width :].bool().to(hidden.device)
            mask = torch.cat([span.real.to(hidden.device), tail], 1)
        changes: dict[str, Any] = {
            "attention_mask": create_causal_mask(self.decoder.config, hidden, mask, Cache(layers=[layer]))
        }
        if span.moved:
            positions = given["position_ids"] - span.shift.to(hidden.device)
            changes |= {
                "position_ids": positions,
                "position_embeddings": self.decoder.rotary_emb(hidden, positions),
            }
        return changes


class _Line:
    """The columns of B prompts in a line, merged tokens at their places, and which of them stay.

    Parameters
    ----------
    real : Tensor
        bool (B, L); false at padding.
    rows, columns : Tensor
        Prompt of each image, and where its tokens are; int64 (I,) and (I, N), -1 at padding.
    choice : Choice
        Of I images.
    """

    def __init__(self, real: Tensor, rows: Tensor, columns: Tensor, choice: Choice) -> None:
        width = real.shape[1]
        picks = ascending(choice.order, columns.shape[1])
        kept = columns.gather(1, picks.clamp_min(0)).masked_fill(picks < 0, -1)
        keep = _mark(_mark(real.clone(), rows, columns, False), rows, kept, True)
        place = torch.arange(width, device=real.device).expand(real.shape)
        self.added, self.slots = 0, columns.new_zeros(len(rows), 0)
        used = self.slots
        if choice.merged is not None and choice.merged_counts is not None:
            most = choice.merged.shape[1]
            nth = (rows[:, None] == rows).tril(-1).sum(1, keepdim=True)
            which = torch.arange(most, device=real.device)
            self.slots = width + nth * most + which
            used = self.slots.masked_fill(which >= choice.merged_counts[:, None], -1)
            self.added = int(nth.max() + 1) * most
            real, keep = (
                nn.functional.pad(x, (0, self.added), value=fill) for x, fill in ((real, True), (keep, False))
            )
            keep = _mark(keep, rows, used, True)
            # Behind the last kept column of the image, and slots that are not used in front of everything.
            place = nn.functional.pad(place * (most + 1), (0, self.added), value=-1)
            behind = kept.amax(1, keepdim=True) * (most + 1) + 1 + which
            filled = used >= 0
            place = place.index_put((rows[:, None].expand_as(used)[filled], used[filled]), behind[filled])
        self._line = place.argsort(dim=1, stable=True)
        self._merged = torch.arange(real.shape[1], device=real.device).expand(real.shape) >= width
        self._gone = real & ~keep & ~self._merged
        self._came = keep & self._merged
        self.order = self._line.gather(1, surviving_columns(keep.gather(1, self._line), real.gather(1, self._line)))
        self.real = keep.gather(1, self.order)
        found = torch.full_like(self._line, -1).scatter(
            1, self.order, torch.arange(self.order.shape[1], device=real.device).expand(self.order.shape)
        )
        both = torch.cat([kept, used], 1)
        both = found[rows].gather(1, both.clamp_min(0)).masked_fill(both < 0, -1)
        self.columns = ascending(both, self.order.shape[1])[:, : int((both >= 0).sum(1).max())]

    def positions(self, positions: Tensor, compact: bool) -> tuple[Tensor, Tensor]:
        """Return the positions (B, W) of what stays, from those (B, L), and how far what follows moves down (B, 1)."""
        moved = (self._gone.long() - self._came.long()) * compact
        down = torch.zeros_like(moved).scatter(1, self._line, moved.gather(1, self._line).cumsum(1))
        positions = nn.functional.pad(positions, (0, self.added)) - down
        positions = positions.gather(1, self.order).clamp_min(0)
        # Merged tokens count on from the token before them.
        place = torch.arange(self.order.shape[1], device=positions.device).expand(self.order.shape)
        last = place.masked_fill(self._merged.gather(1, self.order), 0).cummax(1).values
        return positions.gather(1, last) + place - last, moved.sum(1, keepdim=True)


def _mark(marks: Tensor, rows: Tensor, columns: Tensor, value: bool) -> Tensor:
    """Set marks (B, L) at columns (I, N) of rows (I,), in place; -1 names none."""
    named = columns >= 0
    marks[rows[:, None].expand_as(columns)[named], columns[named]] = value
    return marks


def _numbered(choice: Choice, numbers: Tensor, before: Selection) -> Selection:
    """Return a choice among tokens of these numbers (I, N), -1 for merged ones, as a selection."""
    order = numbers.gather(1, choice.order.clamp_min(0)).masked_fill(choice.order < 0, -1)
    stands = order >= 0
    order = order.gather(1, stands.byte().sort(dim=1, descending=True, stable=True).indices)
    size = before.scores.shape[1]
    scores = torch.full((len(order), size + 1), -torch.inf, device=order.device)
    scores = scores.scatter(1, numbers.where(numbers >= 0, size), choice.scores.float())[:, :size]
    return Selection.from_order(order[:, : int(stands.sum(1).max())], scores, before.requested)


def _dense(real: Tensor) -> Tensor:
    # Gaps between positions would tell FlashAttention that a row is packed; layers take theirs from the embeddings.
    return (real.cumsum(1) - 1).clamp_min(0)

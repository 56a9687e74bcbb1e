"""The block in which a model's calls are pruned: each is shortened, accompanied and reported."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Literal, Self

import torch
from packaging.version import Version
from torch import Tensor
from transformers import Cache
from transformers import __version__ as TRANSFORMERS

from idsel_core.backbones import Relevance, adapter_for
from idsel_core.backbones._shared.caches import cache_in
from idsel_core.backbones._shared.shortened_caches import handed_out, remember
from idsel_core.backbones._shared.stopwatch import stopwatch
from idsel_core.backbones.in_llm.hooks import following
from idsel_core.backbones.in_llm.passage import Passage
from idsel_core.backbones.whisper import Whisper
from idsel_core.methods import Method, drops_inside
from idsel_core.methods._shared.checks import check_flag
from idsel_core.pruning.arguments import inferred_mask, setting_of
from idsel_core.pruning.budget_scope import Scope, check_scope
from idsel_core.pruning.cross_attention import CrossAttention, check_clips, reads_cache
from idsel_core.pruning.cut_prompts import CutPrompts, answer_words, answered, cut_prompts, fitted, pixels_number
from idsel_core.pruning.kept_encodings import KeptEncodings
from idsel_core.pruning.passed_by import warn_of_unpruned
from idsel_core.pruning.patch import calls_of, close_block, open_block
from idsel_core.pruning.pipeline import ShortCall, read_tokens, select_tokens, shorten_call
from idsel_core.pruning.preconditions import (
    check_with_image,
    check_without_image,
    prepared_for_drops,
    prepared_to_keep_positions,
)
from idsel_core.pruning.records import DropRecord, ImageRecord, kept_tokens
from idsel_core.pruning.turns import NextTurn, next_turn
from idsel_core.pruning.wrappers import unwrapped

_READS_CHUNKS = "5.23"
_FROM_CACHE: dict[str, Any] = {"source": "cache", "encode_ms": 0.0, "select_ms": 0.0}


@dataclass(frozen=True)
class TimedCall:
    """A shorter call of the model, and what it took to make it, in milliseconds.

    Attributes
    ----------
    short : ShortCall
        The call.
    prompts : CutPrompts
        What its cache shall know.
    rows : Tensor
        The prompt of each image, int64 (I,).
    kept : bool
        Whether the encoding of an earlier call was used.
    encode_ms, select_ms : float
        Wall time of the tower pass, or of finding a kept encoding, and of the selection with its scores, which holds
        the time to read the chat template where the method reads text for the first time.
    """

    short: ShortCall
    prompts: CutPrompts
    rows: Tensor
    kept: bool
    encode_ms: float
    select_ms: float

    @property
    def inputs(self) -> dict[str, Any]:
        """Shortened arguments."""
        return self.short.inputs

    @property
    def read(self) -> Tensor:
        """Which columns behind the prompts are read: none, bool (B, 0)."""
        return self.prompts.later

    @property
    def said(self) -> Tensor:
        """The tokens of these columns, int64 (B, 0)."""
        return self.prompts.said


class Pruning:
    """The context manager that `prune` returns.

    Attributes
    ----------
    report : list[ImageRecord]
        One record an image, in the order of the calls; it goes on growing when the object is entered again.
    """

    def __init__(
        self,
        model: Any,
        method: Method,
        positions: Literal["compact", "keep"] | None,
        relevance: Relevance | None,
        budget_scope: Scope,
        processor: Any = None,
        full_logits: bool | None = None,
        keep_encodings: int = 0,
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"method must be a Method, for example IDSelection(budget=64), not {method!r}")
        check_scope(budget_scope, method)
        self.model = model = unwrapped(model)
        self.method = method
        self.budget_scope = budget_scope
        self.backbone = adapter_for(model, relevance, processor)
        self.positions = self.backbone.positions_of(positions)
        if self.backbone.encoder_decoder and drops_inside(method):
            raise ValueError(
                f"{method.name} drops tokens between layers that read them in a prompt, but the decoder of "
                f"{type(model).__name__} reads them by cross-attention"
            )
        if full_logits is not None:
            check_flag("full_logits", full_logits)
        if full_logits and drops_inside(method):
            raise ValueError(
                f"{method.name} drops tokens inside the language model, and then the logits have no columns for them: "
                "full_logits cannot be had"
            )
        self.full_logits = full_logits
        self.encodings = KeptEncodings(self.backbone, keep_encodings)
        self.report: list[ImageRecord] = []
        self._calls = 0
        self._reporting = threading.Lock()
        self.encoded_apart, self.passed_by = False, 0
        self._came: list[int] = []

    def __enter__(self) -> Self:
        """Begin to prune."""
        open_block(self)
        self.encoded_apart, self.passed_by = False, 0
        self._came.append(calls_of(self.model))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the model as it was; warn if images passed by, or no call of the model came."""
        calls = calls_of(self.model) - self._came.pop()
        close_block(self)
        self.encodings.clear()
        if error is None:
            warn_of_unpruned(self.passed_by, calls)

    def fills_logits(self, inputs: dict[str, Any]) -> bool:
        """Tell whether the logits of a call get the columns of the prompts as given."""
        return self.full_logits is not False and not drops_inside(self.method) and not inputs.get("logits_to_keep")

    def shorten(self, inputs: dict[str, Any], generating: bool) -> TimedCall | NextTurn | None:
        """Return a shorter call than one with these arguments, or None where there is no image to prune.

        A call that goes on from the cache of a shorter call is made to fit that cache.

        Raises
        ------
        ValueError
            If the call cannot be pruned; the message says why.
        """
        pixels = next((inputs[name] for name in self.backbone.pixel_inputs if inputs.get(name) is not None), None)
        if inputs.get("mm_encoder_outputs") is not None:
            given = " or ".join(self.backbone.pixel_inputs)
            raise ValueError(f"prune() encodes the images itself: give {given} instead of mm_encoder_outputs")
        if (turn := next_turn(self.backbone, inputs, generating)) is not None:
            return turn
        if pixels is None:
            check_without_image(self.backbone, inputs)
            return None
        check_with_image(self.backbone, inputs)
        if self.full_logits and not generating and inputs.get("logits_to_keep"):
            raise ValueError("full_logits=True needs all logits: leave out logits_to_keep")
        if generating and inputs.get("attention_mask") is None:
            mask = inferred_mask(self.model, inputs)
            inputs = inputs if mask is None else {**inputs, "attention_mask": mask}
        if drops_inside(self.method):
            inputs = prepared_for_drops(self.backbone, self.method, inputs, generating)
        chunks = generating and setting_of(self.model, inputs, "prefill_chunk_size") is not None
        if chunks and Version(TRANSFORMERS) < Version(_READS_CHUNKS):
            raise ValueError(
                f"transformers {TRANSFORMERS} gives every chunk of a prompt the images of all chunks; "
                f"prefill_chunk_size needs transformers {_READS_CHUNKS} or newer"
            )
        if self.positions == "keep":
            inputs = prepared_to_keep_positions(self.backbone, inputs, generating)
        # generate() needs no gradients, and assisted decoding copies the features, which it cannot do with them.
        with stopwatch(pixels.device) as encode_ms, torch.set_grad_enabled(torch.is_grad_enabled() and not generating):
            encoded, kept = self.encodings.encode(self.method, inputs)
        with stopwatch(pixels.device) as select_ms, torch.no_grad():
            tokens = read_tokens(self.backbone, encoded, inputs, answered=not generating)
            selection = select_tokens(self.method, tokens, self.budget_scope)
        short = shorten_call(self.backbone, self.method, tokens, selection, inputs, self.positions)
        prompts = cut_prompts(self.backbone, inputs, short.inputs, generating, self.positions)
        assert tokens.slots is not None
        return TimedCall(short, prompts, tokens.slots.rows, kept, encode_ms(), select_ms())

    @contextmanager
    def running(self, call: TimedCall | NextTurn | None, inputs: dict[str, Any]) -> Iterator[Callable[[Any], Any]]:
        """Accompany a call of the model: drop tokens inside it, and report when it is done.

        Parameters
        ----------
        call : TimedCall or NextTurn, optional
            What `shorten` returned.
        inputs : dict[str, Any]
            The arguments that it was given.

        Yields
        ------
        Callable[[Any], Any]
            Takes the output of the call, and returns it.
        """
        cache, outputs = cache_in(inputs), list[Any]()

        def note(output: Any) -> Any:
            outputs.append(output)
            return output

        if call is None:
            yield note
            return
        records: list[tuple[int, ImageRecord]] = []
        with ExitStack() as stack:
            if isinstance(call, NextTurn):
                stack.enter_context(handed_out(cache))
                stack.enter_context(following(self.backbone, cache))
                stack.callback(self._remember, call, inputs, outputs, call.prompts.records)
                yield note
                self._add(lambda number: [replace(r, call=number, **_FROM_CACHE) for _, r in call.prompts.records])
                return
            stack.callback(self._remember, call, inputs, outputs, records)
            with call.short.running() as passage:
                yield note
            rows = call.rows.tolist()
            records += zip(rows, self._add(lambda number: self._records(call, passage, number)), strict=True)

    def _remember(self, call: TimedCall | NextTurn, inputs: dict[str, Any], outputs: list[Any], records: Any) -> None:
        """Note at the cache of a call, the given one and the returned one, what it holds."""
        output = outputs[0] if outputs else None
        sequences = output if isinstance(output, Tensor) else getattr(output, "sequences", None)
        searched = sequences is not None and (setting_of(self.model, inputs, "num_beams") or 1) > 1
        answer = None if sequences is None or searched else sequences[:, call.inputs["input_ids"].shape[1] :]
        held = output if isinstance(output, tuple) else [cache_in(output)] if isinstance(output, dict) else []
        returned = next((each for each in held if isinstance(each, Cache)), None)
        prompts = replace(call.prompts, records=tuple(records), searched=searched)
        words = None if answer is None else answer_words(self.model, inputs, answer)
        prompts = answered(prompts, call.read, call.said, answer, words)
        caches = {id(each): each for each in (cache_in(inputs), returned) if each is not None}.values()
        filled = [each for each in caches if each.get_seq_length()]
        if filled and prompts.pixels is None:
            prompts = replace(prompts, pixels=pixels_number(self.backbone, inputs))
        for cache in filled:
            remember(cache, fitted(prompts, cache))

    def cross_attend(self, inputs: dict[str, Any], generating: bool, plain: Callable[..., Any]) -> Any:
        """Return what a call of an encoder-decoder gives, whose decoder reads the selected tokens alone.

        A call that goes on from a filled cache reads what that holds, and is not changed.

        Raises
        ------
        ValueError
            If the call cannot be pruned; the message says why.
        """
        spectra = inputs.get("input_features")
        if reads_cache(inputs.get("past_key_values")) or (spectra is None and inputs.get("encoder_outputs") is None):
            return plain(**inputs)
        check_clips(self.model, inputs, generating)
        assert spectra is not None and isinstance(self.backbone, Whisper)
        with stopwatch(spectra.device) as encode_ms, torch.set_grad_enabled(torch.is_grad_enabled() and not generating):
            encoded, kept = self.encodings.encode(self.method, inputs)
        asked = inputs.get("use_cache") or inputs.get("past_key_values") is not None
        cache: Literal["own", "given", "wanted"] = "own" if generating else "wanted" if asked else "given"
        crossing = CrossAttention(self.backbone, self.method, encoded, spectra, self.budget_scope, cache)
        with crossing.reading():
            output = plain(**inputs)
        if crossing.ragged and reads_cache(getattr(output, "past_key_values", None)):
            output.past_key_values = None  # it holds padding, which nobody masks later
        if crossing.selection is not None:
            source: Literal["kept encoding", "tower"] = "kept encoding" if kept else "tower"
            times = encode_ms() / len(encoded), crossing.select_ms / len(encoded)
            self._add(lambda number: crossing.records(number, source, *times))
        return output

    def _add(self, records_of: Callable[[int], list[ImageRecord]]) -> list[ImageRecord]:
        """Add the records of one more call, of this number, to the report; return them."""
        with self._reporting:  # several threads may end calls at a time
            records = records_of(self._calls)
            self._calls += 1
            self.report += records
        return records

    def _records(self, call: TimedCall, passage: Passage, number: int) -> list[ImageRecord]:
        tokens, selection = call.short.tokens, call.short.selection
        images = len(tokens)
        before = tokens.full_lengths.tolist()
        layers, drops = passage.layers.tolist(), passage.drops
        select_ms = call.select_ms + sum(drop.milliseconds for drop in drops)
        records = []
        for image in range(images):
            indices, order = kept_tokens(passage.left, image)
            left = [
                DropRecord(drop.layer, int(drop.counts[image]), *kept_tokens(drop.selection, image)) for drop in drops
            ]
            records.append(
                ImageRecord(
                    call=number,
                    image=image,
                    before=before[image],
                    after=layers[image][-1],
                    requested=selection.requested,
                    indices=indices,
                    order=order,
                    encode_ms=call.encode_ms / images,
                    select_ms=select_ms / images,
                    layers=layers[image],
                    drops=left,
                    source="kept encoding" if call.kept else "tower",
                )
            )
        return records

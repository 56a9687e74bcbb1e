"""Prune visual tokens of a model inside a ``with`` block."""

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
from idsel_core.backbones._shared.caches import cache_in, handed_out, remember
from idsel_core.backbones._shared.prompts import PER_TOKEN
from idsel_core.backbones._shared.stopwatch import stopwatch
from idsel_core.backbones.in_llm.hooks import following
from idsel_core.backbones.in_llm.passage import Passage
from idsel_core.backbones.whisper import Whisper
from idsel_core.methods import Method, drops_inside
from idsel_core.methods._shared.checks import check_flag
from idsel_core.pruning.arguments import cached_tokens, check_tensors, inferred_mask, setting_of
from idsel_core.pruning.budget_scope import Scope, check_scope
from idsel_core.pruning.cross_attention import CrossAttention, check_clips, reads_cache
from idsel_core.pruning.cut_prompts import CutPrompts, answer_words, answered, cut_prompts, fitted, pixels_number
from idsel_core.pruning.kept_encodings import KeptEncodings
from idsel_core.pruning.passed_by import warn_of_unpruned
from idsel_core.pruning.patch import calls_of, close_block, open_block
from idsel_core.pruning.pipeline import ShortCall, read_tokens, select_tokens, shorten_call
from idsel_core.pruning.preconditions import check_without_image, prepared_for_drops, prepared_to_keep_positions
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
        input_ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        pixels = next((inputs[name] for name in self.backbone.pixel_inputs if inputs.get(name) is not None), None)
        if inputs.get("mm_encoder_outputs") is not None:
            given = " or ".join(self.backbone.pixel_inputs)
            raise ValueError(f"prune() encodes the images itself: give {given} instead of mm_encoder_outputs")
        if (turn := next_turn(self.backbone, inputs, generating)) is not None:
            return turn
        if pixels is None:
            check_without_image(self.backbone, inputs)
            return None
        if input_ids is None or inputs.get("inputs_embeds") is not None:
            raise ValueError("prune() needs the prompt as input_ids, not as inputs_embeds")
        check_tensors(inputs, (*PER_TOKEN, *self.backbone.pixel_inputs))
        if cached_tokens(inputs):
            raise ValueError("prune() cannot add an image to a cache that holds tokens; give the whole prompt at once")
        if isinstance(inputs.get("logits_to_keep"), Tensor):
            raise ValueError("logits_to_keep must be a number inside prune(), because columns move")
        if self.full_logits and not generating and inputs.get("logits_to_keep"):
            raise ValueError("full_logits=True needs all logits: leave out logits_to_keep")
        if mask is not None and mask.shape != input_ids.shape:
            raise ValueError(f"attention_mask must be {tuple(input_ids.shape)}, as input_ids, not {tuple(mask.shape)}")
        if generating and mask is None and (mask := inferred_mask(self.model, inputs)) is not None:
            inputs = {**inputs, "attention_mask": mask}
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
        rows = self.backbone.locate(input_ids, tokens.full_lengths, tokens.video, inputs.get("attention_mask")).rows
        return TimedCall(short, prompts, rows, kept, encode_ms(), select_ms())

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


def prune(
    model: Any,
    method: Method,
    positions: Literal["compact", "keep"] | None = None,
    relevance: Relevance | None = None,
    budget_scope: Scope = "image",
    processor: Any = None,
    full_logits: bool | None = None,
    keep_encodings: int = 0,
) -> Pruning:
    """Let a model read only the visual tokens that a method selects.

    Inside the block, ``model.generate(...)`` and ``model(...)`` with ``pixel_values`` encode the images once, select,
    and run on a shorter prompt: the cache is shorter, and so are hidden states. Methods that drop tokens inside the
    language model (`InLLM`) make the cache of the layers behind each drop shorter, and the logits as short as the last
    layer, or, with labels, as long as the prompt before the drops. Sequences that ``generate`` returns begin with the
    prompt as it was given, and logits of ``model(...)`` have its columns, see `full_logits`. Calls without images are
    not touched. Blocks nest: the innermost of a thread decides; a call in a thread without a block is pruned by the
    block that was entered last. After the outermost, also when it raises, the model is what it was.

    ``generate`` may search, sample, take drafts from an assistant or from the prompt, read the prompt in chunks, and
    use a static cache, compiled or not. The language model may be compiled, and attend in any way that transformers
    knows (SDPA, eager, FlashAttention, one of your own): scores come from queries and keys, and kernels stay what they
    are. Methods that drop tokens inside the language model need a `DynamicCache`, and one compiled in place at most.

    Methods that read text read the user's own words of the last turn before the answer; labels that are not -100, and
    what the chat template puts between turns, tell where an answer begins. A call may say itself which tokens ask:
    ``question_mask``, bool or int of the shape of ``input_ids``, among its arguments.

    A cache that was filled in a block goes on in a block of the same model alone, by ``model(...)`` or
    ``model.generate(...)`` with the new tokens alone, or with the whole conversation; elsewhere it refuses. The
    attention mask may be as long as the new tokens, as the shortened cache with them, or as the whole conversation.

    Parameters
    ----------
    model : PreTrainedModel
        A model of a supported family, see `idsel_core.backbones.BACKBONES`; it may be wrapped by PEFT, DataParallel,
        DistributedDataParallel or ``torch.compile``.
    method : Method
        For example ``IDSelection(budget=64)``.
    positions : {"compact", "keep"}, optional
        Number the remaining tokens anew, or let them keep the positions that they had in the full prompt. By default
        anew, where positions have one axis; where they have several, tokens keep theirs. What is dropped inside the
        language model follows the method instead.
    relevance : Relevance, optional
        Shared image-text space for methods that read ``relevance``, for example a `Companion`.
    budget_scope : {"image", "tile"}
        Where a model cuts an image into tiles, select from all of them together, or the whole budget from each by
        itself.
    processor : ProcessorMixin or PreTrainedTokenizerBase, optional
        Processor or tokenizer of the prompts, whose chat template tells what the user says in them. By default the one
        that `load` gave, or that lies with the weights in their folder or in the local cache of the hub. Without it,
        all text in front of the answer asks, with a warning. PaliGemma has no template and needs no processor.
    full_logits : bool, optional
        Whether the logits of ``model(...)`` have the columns of the prompt as it was given, (B, L, V), and so compare
        with the caller's labels, as metrics and label smoothing of a ``Trainer`` do; the column of a dropped token has
        the logits of the last kept column before it. False leaves them as short as the prompt was read, which saves
        memory. By default True, except of methods that drop tokens inside the language model, and with
        ``logits_to_keep``.
    keep_encodings : int
        Keep the encodings of so many calls until the block ends: a later call with the same images, and without
        gradients, selects anew for its question, but the vision tower does not run. For conversations that give all
        images again in each turn.

    Returns
    -------
    Pruning
        A context manager with ``report``. At its end it warns if images passed it by, or no call of the model came.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed or the model is not supported. Inside the block, calls raise ValueError where
        prompts, images and budget do not fit.

    Examples
    --------
    >>> with prune(model, IDSelection(budget=64)) as run:  # doctest: +SKIP
    ...     out = model.generate(**inputs, max_new_tokens=16)
    >>> run.report[0].after  # doctest: +SKIP
    64
    """
    return Pruning(model, method, positions, relevance, budget_scope, processor, full_logits, keep_encodings)

"""Prune visual tokens of a model inside a ``with`` block."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import torch
from packaging.version import Version
from torch import Tensor
from transformers import __version__ as TRANSFORMERS

from idsel_core.backbones import Relevance, adapter_for
from idsel_core.backbones._shared.stopwatch import stopwatch
from idsel_core.backbones.in_llm.hooks import following
from idsel_core.backbones.in_llm.passage import Passage
from idsel_core.methods import Method, drops_inside
from idsel_core.methods._shared.checks import check_flag
from idsel_core.pruning.arguments import cached_tokens, inferred_mask, setting_of
from idsel_core.pruning.budget_scope import Scope, check_scope
from idsel_core.pruning.passed_by import warn_of_unpruned
from idsel_core.pruning.patch import calls_of, close_block, open_block
from idsel_core.pruning.pipeline import ShortCall, encode_images, read_tokens, select_tokens, shorten_call
from idsel_core.pruning.preconditions import check_without_image, prepared_for_drops, prepared_to_keep_positions
from idsel_core.pruning.records import DropRecord, ImageRecord, kept_tokens
from idsel_core.pruning.wrappers import unwrapped

_READS_CHUNKS = "5.23"


@dataclass(frozen=True)
class TimedCall:
    """A shorter call of the model, and what it took to make it, in milliseconds."""

    short: ShortCall
    encode_ms: float
    select_ms: float


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
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"method must be a Method, for example IDSelection(budget=64), not {method!r}")
        check_scope(budget_scope, method)
        self.model = model = unwrapped(model)
        self.method = method
        self.budget_scope = budget_scope
        self.backbone = adapter_for(model, relevance, processor)
        self.positions = self.backbone.positions_of(positions)
        if full_logits is not None:
            check_flag("full_logits", full_logits)
        if full_logits and drops_inside(method):
            raise ValueError(
                f"{method.name} drops tokens inside the language model, and then the logits have no columns for them: "
                "full_logits cannot be had"
            )
        self.full_logits = full_logits
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
        if error is None:
            warn_of_unpruned(self.passed_by, calls)

    def fills_logits(self, inputs: dict[str, Any]) -> bool:
        """Tell whether the logits of a call get the columns of the prompts as given; ValueError where they cannot."""
        if self.full_logits is False or drops_inside(self.method):
            return False
        if not inputs.get("logits_to_keep"):
            return True
        if self.full_logits:
            raise ValueError("full_logits=True needs all logits: leave out logits_to_keep")
        return False

    def shorten(self, inputs: dict[str, Any], generating: bool) -> TimedCall | None:
        """Return a shorter call than one with these arguments, or None where there is no image to prune.

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
        if pixels is None:
            check_without_image(self.backbone, inputs, generating)
            return None
        if input_ids is None or inputs.get("inputs_embeds") is not None:
            raise ValueError("prune() needs the prompt as input_ids, not as inputs_embeds")
        if cached_tokens(inputs):
            raise ValueError("prune() cannot add an image to a cache that holds tokens; give the whole prompt at once")
        if isinstance(inputs.get("logits_to_keep"), Tensor):
            raise ValueError("logits_to_keep must be a number inside prune(), because columns move")
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
            encoded = encode_images(self.backbone, self.method, inputs)
        with stopwatch(pixels.device) as select_ms, torch.no_grad():
            tokens = read_tokens(self.backbone, encoded, inputs, answered=not generating)
            selection = select_tokens(self.method, tokens, self.budget_scope)
        short = shorten_call(self.backbone, self.method, tokens, selection, inputs, self.positions)
        return TimedCall(short, encode_ms(), select_ms())

    @contextmanager
    def running(self, call: TimedCall | None, cache: Any) -> Iterator[None]:
        """Accompany a call of the model: drop tokens inside it, and report when it is done.

        Parameters
        ----------
        call : TimedCall, optional
            What `shorten` returned.
        cache : Any
            The cache that the call goes on from, if any.
        """
        if call is None:
            with following(self.backbone, cache):
                yield
            return
        with call.short.running() as passage:
            yield
        self._report(call, passage)

    def _report(self, call: TimedCall, passage: Passage) -> None:
        tokens, selection = call.short.tokens, call.short.selection
        images = len(tokens)
        before = (tokens.lengths if tokens.placeholders is None else tokens.placeholders).tolist()
        layers, drops = passage.layers.tolist(), passage.drops
        select_ms = call.select_ms + sum(drop.milliseconds for drop in drops)
        with self._reporting:  # several threads may end calls at a time
            number = self._calls
            self._calls += 1
            for image in range(images):
                indices, order = kept_tokens(passage.left, image)
                left = [
                    DropRecord(drop.layer, int(drop.counts[image]), *kept_tokens(drop.selection, image))
                    for drop in drops
                ]
                self.report.append(
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
                    )
                )


def prune(
    model: Any,
    method: Method,
    positions: Literal["compact", "keep"] | None = None,
    relevance: Relevance | None = None,
    budget_scope: Scope = "image",
    processor: Any = None,
    full_logits: bool | None = None,
) -> Pruning:
    """Let a model read only the visual tokens that a method selects.

    Inside the block, ``model.generate(...)`` and ``model(...)`` with ``pixel_values`` encode the images once, select,
    and run on a shorter prompt: the cache is shorter, and so are hidden states. Methods that drop tokens inside the
    language model (`InLLM`) make the cache of the layers behind each drop shorter, and the logits as short as the last
    layer; a cache of theirs goes on inside the block alone. Sequences that ``generate`` returns begin with the prompt
    as it was given, and logits of ``model(...)`` have its columns, see `full_logits`. Calls without images are not
    touched. Blocks nest: the innermost of a thread decides; a
    call in a thread without a block is pruned by the block that was entered last. After the
    outermost, also when it raises, the model is what it was.

    ``generate`` may search, sample, take drafts from an assistant or from the prompt, read the prompt in chunks, and
    use a static cache, compiled or not. The language model may be compiled, and attend in any way that transformers
    knows (SDPA, eager, FlashAttention, one of your own): scores come from queries and keys, and kernels stay what they
    are. Methods that drop tokens inside the language model need a `DynamicCache`, and one compiled in place at most.

    Methods that read text read the user's own words of the last turn before the answer; labels that are not -100, and
    what the chat template puts between turns, tell where an answer begins. A call may say itself which tokens ask:
    ``question_mask``, bool or int of the shape of ``input_ids``, among its arguments.

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
        all text in front of the answer asks, with a warning.
    full_logits : bool, optional
        Whether the logits of ``model(...)`` have the columns of the prompt as it was given, (B, L, V), and so compare
        with the caller's labels, as metrics and label smoothing of a ``Trainer`` do; the column of a dropped token has
        the logits of the last kept column before it. False leaves them as short as the prompt was read, which saves
        memory. By default True, except of methods that drop tokens inside the language model, and with
        ``logits_to_keep``.

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
    return Pruning(model, method, positions, relevance, budget_scope, processor, full_logits)

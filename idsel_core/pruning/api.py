"""Prune visual tokens of a model inside a ``with`` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import torch
import transformers
from packaging.version import Version
from torch import Tensor

from idsel_core.backbones import Relevance, adapter_for
from idsel_core.backbones._shared.stopwatch import stopwatch
from idsel_core.backbones.in_llm.checks import check_decoder
from idsel_core.backbones.in_llm.hooks import dropping, following
from idsel_core.backbones.in_llm.passage import Passage
from idsel_core.methods import Method, drops_inside
from idsel_core.pruning.arguments import cached_tokens, inferred_mask, setting_of, with_full_mask
from idsel_core.pruning.budget_scope import Scope, check_scope, select_by_tile
from idsel_core.pruning.patch import PATCHES, Patch
from idsel_core.pruning.records import DropRecord, ImageRecord, kept_tokens
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens

_READS_CHUNKS = "5.23"


@dataclass(frozen=True)
class _Call:
    """A call of the model that is shorter than it was given."""

    inputs: dict[str, Any]
    tokens: VisualTokens
    selection: Selection
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
    ) -> None:
        if not isinstance(method, Method):
            raise TypeError(f"method must be a Method, for example IDSelection(budget=64), not {method!r}")
        check_scope(budget_scope, method)
        self.model = model
        self.method = method
        self.budget_scope = budget_scope
        self.backbone = adapter_for(model, relevance)
        self.positions = self.backbone.positions_of(positions)
        self.report: list[ImageRecord] = []
        self._calls = 0

    def __enter__(self) -> Self:
        """Begin to prune."""
        if self.model not in PATCHES:
            PATCHES[self.model] = Patch(self.model)
        PATCHES[self.model].runs.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the model as it was."""
        patch = PATCHES[self.model]
        patch.runs.remove(self)
        if not patch.runs:
            PATCHES.pop(self.model).undo()

    def shorten(self, inputs: dict[str, Any], generating: bool) -> _Call | None:
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
            self._check_without_image(inputs, generating)
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
            inputs = self._for_drops(inputs, generating)
        chunks = generating and setting_of(self.model, inputs, "prefill_chunk_size") is not None
        if chunks and Version(transformers.__version__) < Version(_READS_CHUNKS):
            raise ValueError(
                f"transformers {transformers.__version__} gives every chunk of a prompt the images of all chunks; "
                f"prefill_chunk_size needs transformers {_READS_CHUNKS} or newer"
            )
        if self.positions == "keep":
            inputs = self._keep_positions(inputs, generating)
        images = self.backbone.image_arguments(inputs)
        grid = self.backbone.target_grid(self.method, **images)
        # generate() needs no gradients, and assisted decoding copies the features, which it cannot do with them.
        with stopwatch(pixels.device) as encode_ms, torch.set_grad_enabled(torch.is_grad_enabled() and not generating):
            encoded = self.backbone.encode(grid=grid, tower_depths=self.method.tower_depths, **images)
        with stopwatch(pixels.device) as select_ms, torch.no_grad():
            tokens = self.backbone.visual_tokens(encoded, input_ids, mask, inputs.get("position_ids"))
            by_tile = self.budget_scope == "tile"
            selection = select_by_tile(self.method, tokens) if by_tile else self.method.select(tokens)
        short = self.backbone.shorten(inputs, tokens, selection, self.positions)
        return _Call(short, tokens, selection, encode_ms(), select_ms())

    @contextmanager
    def running(self, call: _Call | None, cache: Any) -> Iterator[None]:
        """Accompany a call of the model: drop tokens inside it, and report when it is done.

        Parameters
        ----------
        call : _Call, optional
            What `shorten` returned.
        cache : Any
            The cache that the call goes on from, if any.
        """
        if call is None:
            with following(self.backbone, cache):
                yield
            return
        with (
            self.backbone.reading(),
            dropping(self.backbone, self.method, call.tokens, call.selection, call.inputs) as passage,
        ):
            yield
        self._report(call, passage)

    def _report(self, call: _Call, passage: Passage) -> None:
        tokens, images = call.tokens, len(call.tokens)
        before = (tokens.lengths if tokens.placeholders is None else tokens.placeholders).tolist()
        layers, drops = passage.layers.tolist(), passage.drops
        select_ms = call.select_ms + sum(drop.milliseconds for drop in drops)
        for image in range(images):
            indices, order = kept_tokens(passage.left, image)
            self.report.append(
                ImageRecord(
                    call=self._calls,
                    image=image,
                    before=before[image],
                    after=layers[image][-1],
                    requested=call.selection.requested,
                    indices=indices,
                    order=order,
                    encode_ms=call.encode_ms / images,
                    select_ms=select_ms / images,
                    layers=layers[image],
                    drops=[
                        DropRecord(drop.layer, int(drop.counts[image]), *kept_tokens(drop.selection, image))
                        for drop in drops
                    ],
                )
            )
        self._calls += 1

    def _for_drops(self, inputs: dict[str, Any], generating: bool) -> dict[str, Any]:
        check_decoder(self.backbone.language_model)
        why = f"{self.method.name} drops tokens inside the language model while it reads the prompt, whole and once"
        if generating:
            if setting_of(self.model, inputs, "use_cache") is False:
                raise ValueError(f"{why}: generate() needs use_cache=True")
            if setting_of(self.model, inputs, "prefill_chunk_size") is not None:
                raise ValueError(f"{why}: generate() needs prefill_chunk_size=None")
            return inputs
        if inputs.get("labels") is not None:
            raise ValueError(f"{why}, and then the logits are shorter than the labels: take the loss from the logits")
        # Without a mask and a cache, gaps between positions would be read as borders of packed sequences.
        return inputs if inputs.get("attention_mask") is not None else with_full_mask(inputs)

    def _keep_positions(self, inputs: dict[str, Any], generating: bool) -> dict[str, Any]:
        if self.backbone.position_axes == 1:
            self._check_window(inputs, generating)
        if self.backbone.position_axes == 1 and generating:
            if setting_of(self.model, inputs, "use_cache") is False:
                raise ValueError(
                    'positions="keep" needs use_cache=True: without a cache, generate() drops the mask and then reads '
                    "gaps between positions as borders of packed sequences"
                )
            return inputs
        # What forward does by itself where generate counts from the mask; the mask keeps gaps from being borders.
        if inputs.get("position_ids") is None:
            inputs = {**inputs, "position_ids": self.backbone.full_positions(inputs, generating)}
        if self.backbone.position_axes > 1:
            return inputs
        return inputs if inputs.get("attention_mask") is not None else with_full_mask(inputs)

    def _check_window(self, inputs: dict[str, Any], generating: bool) -> None:
        windows = [self.backbone.window(layer) for layer in range(self.backbone.decoder_layers)]
        window = min((size for size in windows if size is not None), default=None)
        if window is None:
            return
        mask = inputs.get("attention_mask")
        length = inputs["input_ids"].shape[1] if mask is None else int(mask.sum(1).max())
        if generating:
            new = setting_of(self.model, inputs, "max_new_tokens")
            length = max(length, setting_of(self.model, inputs, "max_length") or 0) if new is None else length + new
        if length > window:
            raise ValueError(
                f'positions="keep" cannot be had for {length} tokens, prompt and answer: layers of this model attend '
                f"within {window} columns, which after pruning reach further than {window} positions"
            )

    def _check_without_image(self, inputs: dict[str, Any], generating: bool) -> None:
        input_ids, mask, cached = inputs.get("input_ids"), inputs.get("attention_mask"), cached_tokens(inputs)
        if input_ids is None:
            return
        found = int(self.backbone.placeholders(input_ids).sum())
        if found and not cached:
            wanted = " or ".join(self.backbone.pixel_inputs)
            raise ValueError(f"the prompt holds {found} image placeholders, but there are no {wanted}")
        if found and generating:
            raise ValueError(
                "prune() cannot go on from a cache with a prompt that holds images, because the cache is shorter"
            )
        if cached and not generating and mask is not None and mask.shape[-1] > cached + input_ids.shape[1]:
            raise ValueError(
                f"attention_mask has {mask.shape[-1]} columns, but the shortened cache and the new tokens have "
                f"{cached} + {input_ids.shape[1]}"
            )


def prune(
    model: Any,
    method: Method,
    positions: Literal["compact", "keep"] | None = None,
    relevance: Relevance | None = None,
    budget_scope: Scope = "image",
) -> Pruning:
    """Let a model read only the visual tokens that a method selects.

    Inside the block, ``model.generate(...)`` and ``model(...)`` with ``pixel_values`` encode the images once, select,
    and run on a shorter prompt: the cache is shorter, and so are the logits of ``model(...)``. Methods that drop tokens
    inside the language model (`InLLM`) make the cache of the layers behind each drop shorter, and the logits as short
    as the last layer; a cache of theirs goes on inside the block alone. Sequences that ``generate`` returns begin with
    the prompt as it was given. Calls without images are not touched. Blocks nest: the innermost decides. After the
    outermost, also when it raises, the model is what it was.

    ``generate`` may search, sample, take drafts from an assistant or from the prompt, read the prompt in chunks, and
    use a static cache, compiled or not. The language model may be compiled, and attend in any way that transformers
    knows (SDPA, eager, FlashAttention, one of your own): scores come from queries and keys, and kernels stay what they
    are. Methods that drop tokens inside the language model need a `DynamicCache`, and one compiled in place at most.

    Parameters
    ----------
    model : PreTrainedModel
        A model of a supported family, see `idsel_core.backbones.BACKBONES`.
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

    Returns
    -------
    Pruning
        A context manager with ``report``.

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
    return Pruning(model, method, positions, relevance, budget_scope)

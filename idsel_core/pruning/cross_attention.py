"""Calls of an encoder-decoder, whose decoder reads the selected tokens of its clips by cross-attention."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import StaticCache
from transformers.modeling_outputs import BaseModelOutput

from idsel_core.backbones import Encoded
from idsel_core.backbones._shared.own_thread import in_this_thread
from idsel_core.backbones._shared.stopwatch import stopwatch
from idsel_core.backbones.whisper import Whisper
from idsel_core.methods import Method
from idsel_core.pruning.arguments import check_tensors, setting_of
from idsel_core.pruning.budget_scope import Scope
from idsel_core.pruning.pipeline import select_tokens
from idsel_core.pruning.records import ImageRecord, kept_tokens
from idsel_core.selection import Selection


class CrossAttention:
    """What the decoder reads of encoded clips, selected when it begins.

    The method reads the tokens that the decoder starts with, and those are known when the decoder is called. So the
    encoder's place is taken by what it gave before, and tokens are dropped on their way into the decoder.

    Parameters
    ----------
    backbone : Whisper
        Of the model.
    method : Method
        What selects.
    encoded : Encoded
        The I clips of the call.
    spectra : Tensor
        Their spectra, as they are given to the model, (I, bins, steps).
    budget_scope : {"image", "tile"}
        As of `prune`.
    cache : {"own", "given", "wanted"}
        Whose the cache of the decoder is: of ``generate``; of the caller, by default; or of a caller who asked for it.
        Where clips keep different numbers of tokens it holds padding, which nobody masks later: then a caller gets
        none, or an error if one was asked for.

    Attributes
    ----------
    selection : Selection, optional
        What the method chose last; None before the decoder was called.
    select_ms : float
        Wall time of that, milliseconds.
    """

    def __init__(
        self,
        backbone: Whisper,
        method: Method,
        encoded: Encoded,
        spectra: Tensor,
        budget_scope: Scope = "image",
        cache: Literal["own", "given", "wanted"] = "own",
    ) -> None:
        self.backbone, self.method, self.budget_scope = backbone, method, budget_scope
        self.encoded, self.spectra, self.cache = encoded, spectra, cache
        self.selection: Selection | None = None
        self.select_ms = 0.0
        self._kept: tuple[Tensor, Tensor | None] | None = None
        self._selecting = False

    @property
    def ragged(self) -> bool:
        """Whether clips of the batch keep different numbers of tokens, silence among them."""
        return self._kept is not None and self._kept[1] is not None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let the model read the clips in the block, and its decoder the selected tokens alone."""
        core = self.backbone.core
        with ExitStack() as stack:
            stack.enter_context(_in_place_of(core.encoder, self._encode))
            hook = core.decoder.register_forward_pre_hook(in_this_thread(self._decode), with_kwargs=True)
            stack.callback(hook.remove)
            for layer in core.decoder.layers:
                masking = in_this_thread(self._mask)
                stack.callback(layer.encoder_attn.register_forward_pre_hook(masking, with_kwargs=True).remove)
            yield

    def records(
        self, call: int, source: Literal["tower", "kept encoding"], encode_ms: float, select_ms: float
    ) -> list[ImageRecord]:
        """Return what to report of each clip; times are those of one clip."""
        assert self.selection is not None
        records = []
        for clip, (before, after) in enumerate(
            zip(self.encoded.placeholders.tolist(), self.selection.counts.tolist(), strict=True)
        ):
            indices, order = kept_tokens(self.selection, clip)
            records.append(
                ImageRecord(
                    call=call,
                    image=clip,
                    before=before,
                    after=after,
                    requested=self.selection.requested,
                    indices=indices,
                    order=order,
                    encode_ms=encode_ms,
                    select_ms=select_ms,
                    layers=[after] * self.backbone.decoder_layers,
                    source=source,
                )
            )
        return records

    def _encode(self, input_features: Tensor, **_: Any) -> BaseModelOutput:
        """Return what the encoder gave; each pass of it is followed by a new selection."""
        copies = len(input_features) // len(self.spectra)
        wanted = self.spectra.repeat_interleave(max(1, copies), 0)
        if input_features.shape != wanted.shape or not torch.equal(input_features, wanted.to(input_features)):
            raise ValueError(
                "generate() reads parts of the clips anew, as with a list of temperatures or return_timestamps=True, "
                "which prune() cannot follow: leave that out"
            )
        self._kept = self.selection = None
        output: Any = BaseModelOutput
        return output(last_hidden_state=self.encoded.encoder_features.repeat_interleave(copies, 0))

    def _decode(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._selecting or reads_cache(kwargs.get("past_key_values")):
            return None
        if self._kept is None:
            self._select(kwargs)
        assert self._kept is not None
        states = self._kept[0]
        copies = len(kwargs["encoder_hidden_states"]) // len(states)
        changed: dict[str, Any] = {"encoder_hidden_states": states.repeat_interleave(copies, 0)}
        if self.ragged and self.cache != "own":
            if self.cache == "wanted":
                raise ValueError(
                    "clips of the batch keep different numbers of tokens, and nothing can go on from a cache of them: "
                    "give use_cache=False, or one clip at a time"
                )
            changed |= {"use_cache": False, "past_key_values": None}
        return args, {**kwargs, **changed}

    def _select(self, kwargs: Mapping[str, Any]) -> None:
        ids, real = kwargs.get("input_ids"), kwargs.get("attention_mask")
        if ids is None:
            raise ValueError("prune() needs what the decoder starts with as decoder_input_ids, not as embeddings")
        cross = getattr(kwargs.get("past_key_values"), "cross_attention_cache", None)
        if isinstance(cross, StaticCache):
            raise ValueError(
                "prune() cannot fill a static cache with a part of the clip's tokens, because the decoder would attend "
                "to its empty places: leave out cache_implementation='static'"
            )
        copies = len(ids) // len(self.encoded)
        if real is not None:
            real = real[::copies, : ids.shape[1]]
        with stopwatch(self.spectra.device) as milliseconds:
            self._selecting = True
            try:
                with torch.no_grad():
                    tokens = self.backbone.visual_tokens(self.encoded, ids[::copies], real)
                    self.selection = select_tokens(self.method, tokens, self.budget_scope)
            finally:
                self._selecting = False
        self.select_ms = milliseconds()
        self._kept = self.backbone.cross_attended(self.encoded, self.selection)
        attention = self.backbone.model.config._attn_implementation
        if self.ragged and attention not in ("sdpa", "eager"):
            raise ValueError(
                f"clips of a batch keep different numbers of tokens, which {attention} cannot mask: give them one at a "
                "time, or load the model with attention='sdpa'"
            )

    def _mask(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Hide the padding of clips that keep fewer tokens than others of the batch from the cross-attention."""
        if self._selecting or self._kept is None or self._kept[1] is None:
            return None
        states, real = self._kept
        hidden = args[0] if args else kwargs["hidden_states"]
        assert real is not None
        # (I, M) to (R, 1, 1, M)
        bias = torch.zeros(real.shape, dtype=hidden.dtype, device=hidden.device)
        bias = bias.masked_fill(~real.to(hidden.device), torch.finfo(hidden.dtype).min)
        bias = bias.repeat_interleave(len(hidden) // len(states), 0)[:, None, None]
        return args, {**kwargs, "attention_mask": bias}


def reads_cache(cache: Any) -> bool:
    """Tell whether a decoder reads the clips of a call from a cache that an earlier one filled."""
    return any(getattr(cache, "is_updated", {}).values())


def check_clips(model: Any, inputs: Mapping[str, Any], generating: bool) -> None:
    """Raise ValueError unless a call of an encoder-decoder can be pruned; the message says why.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    inputs : Mapping[str, Any]
        Arguments of ``generate`` or ``forward``.
    generating : bool
        Of ``generate``.
    """
    if inputs.get("encoder_outputs") is not None:
        raise ValueError("prune() encodes the clips itself: give input_features instead of encoder_outputs")
    if inputs.get("question_mask") is not None:
        raise ValueError("question_mask marks words of a prompt, which this encoder-decoder has not: leave it out")
    check_tensors(dict(inputs), ("input_features", "attention_mask"))
    config = model.config
    if model.training and config.apply_spec_augment and (config.mask_time_prob > 0 or config.mask_feature_prob > 0):
        raise ValueError("prune() cannot follow SpecAugment, which changes the clips: set apply_spec_augment=False")
    if not generating:
        return
    for name in ("return_timestamps", "return_token_timestamps"):
        if setting_of(model, dict(inputs), name):
            raise ValueError(
                f"{name} tells the time by the places of all tokens of a clip: inside prune() give {name}=False"
            )


@contextmanager
def _in_place_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let another function be what a module computes, in this thread."""
    own, plain, owner = vars(module).get("forward"), module.forward, threading.get_ident()

    def acting(*args: Any, **kwargs: Any) -> Any:
        return (forward if threading.get_ident() == owner else plain)(*args, **kwargs)

    module.forward = acting
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own

"""Whisper: an encoder-decoder, whose decoder reads the tokens of an audio clip by cross-attention."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded, constant_view
from idsel_core.backbones._shared.own_calls import calling
from idsel_core.backbones._shared.qk_capture import CapturedQK, attention_modules, capture_qk
from idsel_core.backbones._shared.tensors import pixel_key
from idsel_core.backbones._shared.tower_views import layer_at
from idsel_core.backbones.relevance.companion import Relevance
from idsel_core.scores import attention_rows
from idsel_core.visual_tokens import QueryTokens, Unavailable, VisualTokens

if TYPE_CHECKING:
    from idsel_core.selection.result import Selection

SILENCES = ("thinned", "kept", "dropped")


class Whisper(Backbone):
    """``WhisperForConditionalGeneration``; an audio clip takes the place of an image.

    The encoder reads a window of 30 seconds as 1500 tokens of 20 ms. Those of a clip are the first of them, so many as
    its ``attention_mask`` tells; behind them is silence. Methods select among the clip's own tokens, and a budget that
    is a share is a share of those. The decoder reads what is left by cross-attention: nothing is numbered anew, because
    the encoder has put positions into the tokens. The projector is the identity. The encoder has no [CLS]; saliency is
    the mean attention that a token receives from the clip's own tokens. The instruction is what the decoder starts
    with, such as the tokens of language and task.

    Attributes
    ----------
    silence : {"thinned", "kept", "dropped"}
        What happens to the tokens of silence behind a clip, whatever the method: of them is kept the same share as of
        the clip's own, evenly spaced; or all; or none. Whisper was trained with the silence, and stops too early or
        repeats itself without it.
    """

    image_inputs = ("input_features", "attention_mask")
    pixel_inputs = ("input_features",)
    features_input = "encoder_outputs"
    encoder_decoder = True
    has_chat_template = False
    no_resize_reason = "audio clips are not images"
    missing_views = {  # noqa: RUF012
        **dict.fromkeys(("cls_attention", "wide_cls_attention", "cls_features"), "audio towers have no [CLS] token"),
        "frames": "audio clips are not videos",
        "crops": "audio clips are not cut into crops",
        "word_similarity": "the decoder reads a clip by cross-attention, so words have other features than its tokens",
    }

    def __init__(self, model: Any, relevance: Relevance | None = None, processor: Any = None) -> None:
        if not hasattr(model.base_model, "encoder"):
            raise ValueError(f"{type(model).__name__} has no encoder: give a WhisperForConditionalGeneration")
        super().__init__(model, relevance, processor)
        self.silence: Literal["thinned", "kept", "dropped"] = "thinned"

    @property
    def language_model(self) -> Any:
        """The decoder, which reads text, and the clip by cross-attention."""
        return self.core.decoder

    @property
    def decoder_layers(self) -> int:
        """Layers of the decoder."""
        return int(self.model.config.decoder_layers)

    def positions_of(self, positions: str | None) -> str:
        """Return "keep", because the encoder has put positions into the tokens.

        Raises
        ------
        ValueError
            If something else is asked for.
        """
        if positions not in (None, "keep"):
            raise ValueError(
                f"positions={positions!r} cannot be had: the encoder has put positions into the tokens of a clip, and "
                'they keep theirs; give "keep" or nothing'
            )
        return "keep"

    def encode(
        self,
        pixel_values: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the encoder once, see `Backbone.encode`; `pixel_values` must be None.

        Parameters
        ----------
        image_inputs
            ``input_features``, log-mel spectra (I, bins, steps), and ``attention_mask``, (I, steps), 1 at the steps of
            the clip and 0 at the silence behind it.

        Returns
        -------
        Encoded
            The tokens of the whole window; `mask` is True at those of the clip.

        Raises
        ------
        Unavailable
            If `grid` is given.
        ValueError
            If the spectra or the mask are missing or do not fit, or a clip has no token.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.no_resize_reason)
        spectra, steps = (image_inputs.get(name) for name in self.image_inputs)
        if spectra is None:
            raise ValueError("audio clips need input_features")
        encoder = self.core.encoder
        window = int(encoder.max_source_positions)
        mask = self._own_tokens(spectra, steps, window)
        modules = attention_modules(encoder)
        layers = {f"@{depth:g}": layer_at(depth, len(modules)) for depth in tower_depths} | {"": len(modules) - 1}
        with ExitStack() as stack:
            stack.enter_context(calling(self.model))
            seen = {layer: stack.enter_context(capture_qk(modules[layer])) for layer in sorted(set(layers.values()))}
            states = encoder(spectra).last_hidden_state
        mask = mask.to(states.device)
        views: dict[str, Callable[[], Tensor]] = {"image_key": lambda: pixel_key(spectra)}
        for suffix, layer in layers.items():
            views |= {f"{name}{suffix}": view for name, view in _views(seen[layer], mask.sum(1)).items()}
        time = torch.arange(window, device=states.device).expand(mask.shape)
        return Encoded(
            encoder_features=states,
            mask=mask,
            grid=torch.stack([torch.zeros_like(time), time], 2).masked_fill(~mask[..., None], -1),
            placeholders=mask.sum(1),
            views=views,
        )

    def project(self, encoder_features: Tensor) -> Tensor:
        """Return the features as they are: the decoder's cross-attention reads them."""
        return encoder_features

    def visual_tokens(
        self,
        encoded: Encoded,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        answer: Tensor | None = None,
        answered: bool = False,
    ) -> VisualTokens:
        """Join encoded clips with what the decoder starts with.

        Parameters
        ----------
        encoded : Encoded
            I clips.
        input_ids, attention_mask : Tensor
            The tokens that the decoder starts with, and 0 at padding, (I, T).
        position_ids, question_mask, answer, answered
            Not used.

        Returns
        -------
        VisualTokens
            I rows; of the clips' own tokens alone, up to the longest clip.
        """
        most = int(encoded.placeholders.max())
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        why = "or the encoding was stored without this view"
        reasons = {"received_attention": why, "keys": why, "image_key": why, **self.missing_views}
        reasons |= dict.fromkeys(("relevance", "relevance_product"), "no image-text companion reads audio clips")
        per_clip = ("image_key",)

        def cut(name: str, view: Callable[[], Tensor]) -> Callable[[], Tensor]:
            return view if name in per_clip else lambda: view()[:, :most]

        features = encoded.encoder_features[:, :most]
        sources: dict[str, Callable[..., Tensor]] = {
            "encoder_features": constant_view(features),
            "projector": self.project,
            "instruction_attention": self._instruction_attention(encoded, input_ids, real.bool()),
            **{name: cut(name, view) for name, view in encoded.views.items()},
        }
        return VisualTokens(
            features,
            encoded.mask[:, :most],
            encoded.grid[:, :most],
            sources,
            reasons,
            placeholders=encoded.placeholders,
            decoder_layers=self.decoder_layers,
        )

    def cross_attended(self, encoded: Encoded, selection: Selection) -> tuple[Tensor, Tensor | None]:
        """Return what the decoder's cross-attention reads of clips.

        Parameters
        ----------
        encoded : Encoded
            I clips.
        selection : Selection
            What a method chose from their `visual_tokens`.

        Returns
        -------
        tuple[Tensor, Tensor or None]
            Tokens (I, M, D), those of the clip before those of the silence, and True at tokens, bool (I, M); None where
            all clips have M.

        Raises
        ------
        ValueError
            If `silence` is unknown, or the selection has another number of rows.
        """
        if self.silence not in SILENCES:
            raise ValueError(f"silence must be one of {', '.join(SILENCES)}, not {self.silence!r}")
        if len(selection) != len(encoded):
            raise ValueError(f"the selection has {len(selection)} rows for {len(encoded)} clips")
        rows: list[Tensor] = []
        window = encoded.mask.shape[1]
        counts, lengths = selection.counts.tolist(), encoded.placeholders.tolist()
        for states, picks, count, own in zip(encoded.encoder_features, selection.indices, counts, lengths, strict=True):
            row = len(rows)
            kept = states[picks[:count].to(states.device)]
            if selection.features is not None:
                kept = selection.features[row, :count].to(states)
            silent = self._silent(window - own, count, own).to(states.device) + own
            rows.append(torch.cat([kept, states[silent]]))
        states = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        sizes = torch.tensor([len(row) for row in rows], device=states.device)
        real = torch.arange(states.shape[1], device=states.device) < sizes[:, None]
        return states, None if bool(real.all()) else real

    def _silent(self, silent: int, kept: int, own: int) -> Tensor:
        """Return which of `silent` tokens behind a clip stay, where `kept` of its `own` tokens do, int64 (S,)."""
        shares = {"thinned": (2 * silent * kept + own) // (2 * own), "kept": silent, "dropped": 0}
        count = shares[self.silence]
        return (2 * torch.arange(count) + 1) * silent // (2 * max(1, count))

    def _own_tokens(self, spectra: Tensor, steps: Tensor | None, window: int) -> Tensor:
        """Return a mask of the tokens of each clip in the window, bool (I, N)."""
        if steps is None:
            raise ValueError(
                "a clip needs attention_mask, which tells it from the silence behind it: give "
                "return_attention_mask=True to the processor, or torch.ones of input_features[:, 0] where the silence "
                "shall count as the clip's"
            )
        if spectra.shape[-1] > 2 * window:
            raise ValueError(
                f"input_features have {spectra.shape[-1]} steps, but prune() reads one window of {2 * window} "
                f"({window // 50} seconds) a clip: cut longer clips"
            )
        if steps.shape != (spectra.shape[0], spectra.shape[-1]):
            wanted = (spectra.shape[0], spectra.shape[-1])
            raise ValueError(f"attention_mask must be {wanted}, one number a step, not {tuple(steps.shape)}")
        real = steps.bool()
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError(
                "attention_mask must be 1 at the steps of a clip, and 0 behind them: clips begin at step 0"
            )
        lengths = self.model._get_feat_extract_output_lengths(real.sum(1))
        if bool((lengths < 1).any()):
            raise ValueError(f"audio clip {int((lengths < 1).int().argmax())} is empty: its attention_mask is all 0")
        return torch.arange(window, device=lengths.device) < lengths[:, None]

    def _instruction_attention(
        self, encoded: Encoded, input_ids: Tensor, real: Tensor
    ) -> Callable[[int, QueryTokens], Tensor]:
        """Return the function that computes the cross-attention of the decoder's start tokens (I, N) at a layer."""
        most = int(encoded.placeholders.max())

        @functools.cache
        @torch.no_grad()
        def attend(layer: int) -> tuple[Tensor, Tensor, float]:
            if layer >= self.decoder_layers:
                raise ValueError(f"instruction layer {layer} does not exist; the decoder has {self.decoder_layers}")
            with capture_qk(self.language_model.layers[layer].encoder_attn, real) as seen:
                self.language_model(
                    input_ids=input_ids,
                    attention_mask=real.long(),
                    encoder_hidden_states=encoded.encoder_features,
                    use_cache=False,
                )
            return seen.tensors()

        def view(layer: int, which: QueryTokens) -> Tensor:
            query, key, scale = attend(layer)
            asking = attention_rows.last_token(real) if which == "last" else real
            place = torch.arange(most, device=key.device)  # (N,)
            columns = place.where(encoded.mask[:, :most].to(key.device), -1)  # (I, N)
            return attention_rows.instruction_row(query, key, scale, asking.to(query.device), columns)

        return view


def _views(seen: CapturedQK, lengths: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the views that a layer of the encoder gives of clips with so many tokens, int64 (I,)."""
    query, key, scale = seen.tensors()

    def received() -> Tensor:
        # One clip at a time: queries of its own n tokens, keys of the whole window.
        rows = [
            attention_rows.received(query[i : i + 1, :, :n], key[i : i + 1], scale)[0]
            for i, n in enumerate(lengths.tolist())
        ]
        return torch.stack(rows)

    return {"received_attention": received, "keys": lambda: key.transpose(1, 2)}

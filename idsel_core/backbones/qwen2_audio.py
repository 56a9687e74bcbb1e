"""Qwen2-Audio: audio clips instead of images, with tokens along one axis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.own_calls import calling
from idsel_core.backbones._shared.own_thread import in_this_thread
from idsel_core.backbones._shared.qk_capture import CapturedQK, Stop, attention_modules, capture_qk
from idsel_core.backbones._shared.tensors import as_weights, pixel_key
from idsel_core.backbones._shared.tower_views import layer_at
from idsel_core.scores import attention_rows
from idsel_core.visual_tokens import Unavailable, VisualTokens

if TYPE_CHECKING:
    from idsel_core.selection.result import Selection


class Qwen2Audio(Backbone):
    """``Qwen2AudioForConditionalGeneration``; an audio clip takes the place of an image.

    A token is the mean of two neighbouring frames of the tower. The tower has no [CLS]; saliency is the mean attention
    that the frames of a token receive within their clip. The grid has one row, and the column of a token is its time in
    steps of 40 ms. Each clip fills as many ``<|AUDIO|>`` placeholders as the processor writes for it.
    """

    image_inputs = ("input_features", "feature_attention_mask")
    pixel_inputs = ("input_features",)
    joined_kinds = ("audio",)
    features_input = "feature_attention_mask"
    no_resize_reason = "audio clips are not images"
    missing_views = {  # noqa: RUF012
        **dict.fromkeys(("cls_attention", "wide_cls_attention", "cls_features"), "audio towers have no [CLS] token"),
        **dict.fromkeys(("relevance", "relevance_product"), "no image-text companion reads audio clips"),
        "frames": "audio clips are not videos",
        "crops": "audio clips are not cut into crops",
    }

    @property
    def image_token_id(self) -> int:
        """Token id of the audio placeholder."""
        return int(self.model.config.audio_token_id)

    def encode(
        self,
        pixel_values: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        tower_depths: Iterable[float] = (),
        **image_inputs: Any,
    ) -> Encoded:
        """Run the audio tower once, see `Backbone.encode`; `pixel_values` must be None.

        Parameters
        ----------
        image_inputs
            ``input_features``, log-mel spectra (I, bins, steps), and ``feature_attention_mask``, (I, steps), 1 at steps
            and 0 at padding.

        Raises
        ------
        Unavailable
            If `grid` is given.
        ValueError
            If the spectra or the mask are missing, or a clip is too short for a token.
        """
        if grid is not None:
            raise Unavailable("a smaller image", self.no_resize_reason)
        spectra, steps = (image_inputs.get(name) for name in self.image_inputs)
        if spectra is None or steps is None:
            raise ValueError(f"audio clips need {' and '.join(self.image_inputs)}")
        tower = self.core.audio_tower
        frames, lengths = (n.to(spectra.device) for n in tower._get_feat_extract_output_lengths(steps.sum(-1)))
        if bool((lengths < 1).any()):
            clip = int((lengths < 1).int().argmax())
            raise ValueError(f"audio clip {clip} has {int(steps[clip].sum())} steps, which is too short for a token")
        modules = attention_modules(tower)
        layers = {f"@{depth:g}": layer_at(depth, len(modules)) for depth in tower_depths} | {"": len(modules) - 1}
        entered, projected, seen = self._read_tower(spectra, steps, sorted(set(layers.values())))
        count, device = int(lengths.max()), entered.device
        lengths = lengths.to(device)
        mask = torch.arange(count, device=device) < lengths[:, None]
        views: dict[str, Callable[[], Tensor]] = {"image_key": lambda: pixel_key(spectra)}
        for suffix, layer in layers.items():
            views |= {f"{name}{suffix}": view for name, view in _views(seen[layer], frames, mask).items()}
        time = torch.arange(count, device=device).expand(mask.shape)
        return Encoded(
            encoder_features=entered[:, :count].masked_fill(~mask[..., None], 0),
            mask=mask,
            grid=torch.stack([torch.zeros_like(time), time], 2).masked_fill(~mask[..., None], -1),
            placeholders=lengths,
            views=views,
            features=projected[:, :count].masked_fill(~mask[..., None], 0),
        )

    def project(self, encoder_features: Tensor) -> Tensor:
        """Apply the projector, (I, N, Dv) to (I, N, D)."""
        projector = self.core.multi_modal_projector
        projected: Tensor = projector(as_weights(encoder_features, projector))
        return projected

    def encoder_outputs(self, tokens: VisualTokens, selection: Selection) -> dict[str, Any]:
        """Wrap the kept features as ``mm_encoder_outputs``, which `joined` takes out of a call of the core."""
        return {"audio": super().encoder_outputs(tokens, selection)["image"]}

    def joined(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments of the core with embeddings, because it does not read ``mm_encoder_outputs``.

        Parameters
        ----------
        inputs : Mapping[str, Any]
            Arguments of ``forward``.
        """
        arguments = dict(inputs)
        given = arguments.pop("mm_encoder_outputs", None) or {}
        kept = getattr(given.get("audio"), "pooler_output", None)
        if kept is None:
            return arguments
        ids: Tensor = arguments["input_ids"]
        embeddings = self.core.get_input_embeddings()(ids)
        marks = self.placeholders(ids)
        features = _repeat_for_copies(torch.cat(list(kept)), marks).to(embeddings)
        embeddings = embeddings.masked_scatter(marks[..., None], features)
        return {**arguments, "input_ids": None, "inputs_embeds": embeddings}

    def _read_tower(
        self, spectra: Tensor, steps: Tensor, layers: list[int]
    ) -> tuple[Tensor, Tensor, dict[int, CapturedQK]]:
        """Return input and output of the projector, and captured layers.

        The model computes the mask of its tower in its own forward pass, so that is run until the projector is done.
        """
        modules, passed = attention_modules(self.core.audio_tower), []

        def stop(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            passed.append((args[0], output))
            raise Stop

        prompt = torch.full((1, 2), self.image_token_id, device=spectra.device)
        with ExitStack() as stack:
            stack.enter_context(suppress(Stop))
            hook = self.core.multi_modal_projector.register_forward_hook(in_this_thread(stop))
            stack.callback(hook.remove)
            seen = {layer: stack.enter_context(capture_qk(modules[layer])) for layer in layers}
            stack.enter_context(calling(self.model))
            self.core.forward(input_ids=prompt, input_features=spectra, feature_attention_mask=steps)
        return *passed[0], seen


def _views(seen: CapturedQK, frames: Tensor, mask: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Return the views that a layer gives of clips with so many frames, int64 (I,), and tokens, bool (I, N)."""
    query, key, scale = seen.tensors()
    count = mask.shape[1]

    def pooled(values: Tensor) -> Tensor:
        # (I, 2 N, ...) to (I, N, 2, ...): two frames of each token.
        halves = values[:, : 2 * count].reshape(len(values), count, 2, *values.shape[2:])
        return halves.mean(2).masked_fill(~mask.view(*mask.shape, *[1] * (values.ndim - 2)), 0)

    def received() -> Tensor:
        rows = [
            attention_rows.received(query[i : i + 1, :, :n], key[i : i + 1, :, :n], scale)[0]
            for i, n in enumerate(frames.tolist())
        ]
        return pooled(nn.functional.pad(nn.utils.rnn.pad_sequence(rows, batch_first=True), (0, 1)))

    return {"received_attention": received, "keys": lambda: pooled(key.transpose(1, 2))}


def _repeat_for_copies(features: Tensor, marks: Tensor) -> Tensor:
    """Repeat features (T, D) of prompts if the batch holds several copies of each prompt, one after the other.

    Parameters
    ----------
    features : Tensor
        One row for each placeholder of all prompts.
    marks : Tensor
        Mask of the placeholders of all copies, bool (R, L).
    """
    copies = int(marks.sum()) // max(1, len(features))
    if copies <= 1:
        return features
    prompts = torch.split(features, marks[::copies].sum(1).tolist())
    return torch.cat([part for part in prompts for _ in range(copies)])

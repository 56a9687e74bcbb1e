"""Qwen3-VL: as Qwen2-VL, with deepstack features that enter early layers of the language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.tensors import padded_rows
from idsel_core.backbones.qwen_vl import Pass, Qwen2VL
from idsel_core.visual_tokens import Unavailable, VisualTokens

if TYPE_CHECKING:
    from idsel_core.selection.result import Selection


class Qwen3VL(Qwen2VL):
    """``Qwen3VLForConditionalGeneration``, images and videos.

    Deepstack features are kept and dropped with their tokens. If a method merges other tokens into a kept token, that
    token keeps its own.
    """

    beside_images = (r"<\d+\.\d+seconds>",)

    def encoder_outputs(self, tokens: VisualTokens, selection: Selection) -> dict[str, Any]:
        """Wrap the kept features and deepstack features as the ``mm_encoder_outputs`` of one call of the model.

        Raises
        ------
        Unavailable
            If the encoding was stored without deepstack features.
        """
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        with_planes: Any = BaseModelOutputWithDeepstackFeatures
        outputs = super().encoder_outputs(tokens, selection)
        if "deepstack" not in tokens.sources:
            raise Unavailable("deepstack", "the encoding was stored without this view")
        planes = tokens.sources["deepstack"]()
        kept = [planes[row, picks.to(planes.device)] for row, picks in enumerate(selection.rows())]
        video = [False] * len(tokens) if tokens.video is None else tokens.video.tolist()
        for kind, output in outputs.items():
            own = [rows for rows, is_video in zip(kept, video, strict=True) if is_video is (kind == "video")]
            outputs[kind] = with_planes(
                pooler_output=output.pooler_output,
                deepstack_features=[[rows[:, layer] for rows in own] for layer in range(planes.shape[2])],
            )
        return outputs

    def _concatenate(self, passes: list[Pass], layers: Mapping[str, int]) -> Encoded:
        encoded = super()._concatenate(passes, layers)
        # Each pass holds a tuple of layers of tuples of images; stacked to (tokens, layers, D).
        rows = [torch.stack([torch.cat(list(plane)) for plane in part.output.deepstack_features], 1) for part in passes]
        planes = padded_rows(torch.cat(rows), lengths=encoded.placeholders)
        return dataclasses.replace(encoded, views={**encoded.views, "deepstack": lambda: planes})

    def beside_embeddings(self, encoded: Encoded, input_ids: Tensor, places: tuple[Tensor, Tensor]) -> dict[str, Any]:
        """Return the planes of features that enter the first layers."""
        if "deepstack" not in encoded.views:
            raise Unavailable("deepstack", "the encoding was stored without this view")
        planes, marks = encoded.views["deepstack"](), self.placeholders(input_ids)
        line = planes.new_zeros(*input_ids.shape, *planes.shape[2:]).index_put(places, planes[encoded.mask])
        return {"visual_pos_masks": marks, "deepstack_visual_embeds": list(line[marks].unbind(1))}

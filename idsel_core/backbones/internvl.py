"""InternVL: an image as tiles and a thumbnail, patches joined into tokens by pixel shuffle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.pooled_patches import PooledPatches
from idsel_core.backbones._shared.prompts import runs


class InternVL(PooledPatches):
    """``InternVLForConditionalGeneration``, images and the frames of videos.

    The model is not told which tiles are of one image: those whose placeholders stand in one run are, so a frame of a
    video is an image. The thumbnail comes last. A token is what the projector makes of some patches that pixel shuffle
    joined: its `Encoded.encoder_features` are these patches joined.
    """

    image_inputs = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")
    has_cls = True
    joined_kinds = ("image",)
    why_no_view = {  # noqa: RUF012
        "cls_features": "the projector reads joined patches, and [CLS] is one token",
        "crops": "the model is not told how the tiles of an image lie",
    }

    def image_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode` in a call of the model, with the tiles of each image.

        Raises
        ------
        ValueError
            If a run of placeholders is not of whole tiles.
        """
        _, starts, ends = runs(self.placeholders(inputs["input_ids"]))
        counts = ends - starts
        arguments = super().image_arguments(inputs)
        if int(counts.sum()) != len(arguments["pixel_values"]) * self.tile_tokens:
            return arguments
        if bool((counts % self.tile_tokens).any()):
            raise ValueError(
                f"placeholders of an image must stand in one run, {self.tile_tokens} for each tile; "
                f"found runs of {counts.tolist()}"
            )
        return {**arguments, "tiles": (counts // self.tile_tokens).tolist()}

    def members(self) -> Tensor:
        """Return which patches of a tile each token is made of, int64 (N, patches)."""
        numbers = torch.arange(self.side**2, dtype=torch.float64).view(1, self.side, self.side, 1)
        shuffled: Tensor = self.core.pixel_shuffle(numbers, scale_factor=self.model.config.downsample_ratio)
        return shuffled.flatten(0, 2).long()

"""InternVL: images as tiles and a thumbnail, and pixel shuffle of patches into tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.pooled_patches import PooledPatches
from idsel_core.backbones._shared.prompts import runs


class InternVL(PooledPatches):
    """``InternVLForConditionalGeneration``, images and frames of videos.

    The model does not know which tiles belong to one image. Here tiles whose placeholders stand in one run do, so a
    frame of a video is an image. The thumbnail comes last. A token is the projection of some patches that pixel shuffle
    concatenates, and `Encoded.encoder_features` are this concatenation.
    """

    image_inputs = ("pixel_values", "vision_feature_layer", "vision_feature_select_strategy")
    has_cls = True
    joined_kinds = ("image",)
    beside_images = (r"Frame\d+:",)
    missing_views = {  # noqa: RUF012
        "cls_features": "the projector reads several patches as one row, and [CLS] is one token",
        "crops": "the model does not know how the tiles of an image lie",
    }

    def image_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode` in a call of the model, with the number of tiles of each image.

        Raises
        ------
        ValueError
            If a run of placeholders is not a whole number of tiles.
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
        """Return the patches of a tile that each token is made of, int64 (N, patches)."""
        numbers = torch.arange(self.side**2, dtype=torch.float64).view(1, self.side, self.side, 1)
        shuffled: Tensor = self.core.pixel_shuffle(numbers, scale_factor=self.model.config.downsample_ratio)
        return shuffled.flatten(0, 2).long()

"""Video-LLaVA: separate towers for images and videos, one token for each patch, and [CLS] of each frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.patches import Patches, pooling_windows
from idsel_core.backbones._shared.videos import LlavaWithVideos


class VideoLlava(LlavaWithVideos):
    """``VideoLlavaForConditionalGeneration``, images and videos.

    Images are encoded as in LLaVA-1.5. The language model reads all patches of each frame of a video, after the [CLS]
    of the frame, which is a token off the grid.
    """

    image_inputs = (
        "pixel_values",
        "pixel_values_images",
        "pixel_values_videos",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )
    pixel_inputs = ("pixel_values", "pixel_values_images", "pixel_values_videos")
    joined_kinds = ("image", "video")
    no_resize_reason = "frames of videos are not resized"

    def image_arguments(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of `encode` in a call of the model, which may name images ``pixel_values_images``."""
        arguments = super().image_arguments(inputs)
        images = arguments.pop("pixel_values_images", None)
        return arguments if images is None else {"pixel_values": images, **arguments}

    def tower(self, kind: str = "image") -> Any:
        """Return the vision tower of images or of videos."""
        return getattr(self.core, f"{kind}_tower")

    def _frame(self, patches: int) -> tuple[Patches, Tensor]:
        side = int(self.model.config.vision_config.image_size) // self._patch
        cells = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        return pooling_windows(1, patches, 1), torch.cat([cells.new_full((patches - side**2, 2), -1), cells])

    def _crops_cls(self, options: dict[str, Any]) -> bool:
        return False

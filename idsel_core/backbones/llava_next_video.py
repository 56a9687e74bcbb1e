"""LLaVA-NeXT-Video: images as in LLaVA-NeXT, and videos of pooled frames."""

from __future__ import annotations

import torch
from torch import Tensor

from idsel_core.backbones._shared.patches import Patches, pooling_windows
from idsel_core.backbones._shared.videos import LlavaWithVideos
from idsel_core.backbones.llava_next import LlavaNext


class LlavaNextVideo(LlavaWithVideos, LlavaNext):
    """``LlavaNextVideoForConditionalGeneration``, images and videos.

    Images are encoded as in LLaVA-NeXT. Frames of a video are thumbnails whose patches are pooled before the projector,
    by ``spatial_pool_mode`` and ``spatial_pool_stride``. Videos have no newlines.
    """

    image_inputs = (
        "pixel_values",
        "image_sizes",
        "pixel_values_videos",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )
    no_resize_reason = "this model cuts images into tiles of one size, and frames of videos are of that size"

    def _frame(self, patches: int) -> tuple[Patches, Tensor]:
        stride = int(self.model.config.spatial_pool_stride)
        pooled = torch.arange(self._side // stride)
        return pooling_windows(self._side, self._side, stride), torch.cartesian_prod(pooled, pooled)

"""LLaVA-OneVision: tiles as in LLaVA-NeXT, scaled down if they are too many, and videos of pooled frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones._shared.patches import Patches, bilinear_corners, unflatten_values
from idsel_core.backbones._shared.videos import LlavaWithVideos
from idsel_core.backbones.llava import Llava
from idsel_core.backbones.llava_next import LlavaNext

CORNERS = 4
"""Number of patches that a token is interpolated from."""


class LlavaOnevision(LlavaWithVideos, LlavaNext):
    """``LlavaOnevisionForConditionalGeneration``, images and videos.

    Images are encoded as in LLaVA-NeXT. If the tiles have too many patches, tokens are interpolated between them; the
    cell and crop of such a token are those of the nearest patch. If a prompt holds several images, by
    ``batch_num_images``, they are thumbnails without tiles, with one newline at the end. Frames of a video are
    thumbnails whose patches are pooled, about two by two; the video ends with one newline, in the last frame.

    The projector comes before the pooling. So `Encoded.encoder_features` hold up to four patches, one for most tokens
    of images, followed by their four weights; see `Patches.flatten_values`.
    """

    image_inputs = (
        "pixel_values",
        "image_sizes",
        "batch_num_images",
        "vision_aspect_ratio",
        "pixel_values_videos",
        "vision_feature_layer",
        "vision_feature_select_strategy",
    )
    joined_kinds = ("video",)
    no_resize_reason = "this model cuts images into tiles of one size, and frames of videos are of that size"

    def project(self, encoder_features: Tensor) -> Tensor:
        """Project and pool patches, (I, N, 4 * (Dv + 1)) to (I, N, D); rows of zeros become newlines."""
        patches, weights = unflatten_values(encoder_features, CORNERS)  # (I, N, 4, Dv), (I, N, 4, 1)
        projected = Llava.project(self, patches.flatten(1, 2)).view(*patches.shape[:3], -1)
        pooled = (projected * weights.to(projected)).sum(2)
        newline = ~encoder_features.any(2, keepdim=True)
        return torch.where(newline.to(pooled.device), self.core.image_newline.to(pooled), pooled)

    def _entering(self, patches: Patches, entered: Tensor) -> Tensor:
        return patches.flatten_values(entered, CORNERS)

    def _as_patches(self, states: Tensor) -> Tensor:
        whole = Patches(torch.arange(len(states))[:, None], torch.ones(len(states), 1))
        return Patches.concatenate([whole], states.device).flatten_values(states, CORNERS)

    def _tiles(self, sizes: Tensor, options: Mapping[str, Any]) -> list[int]:
        tiles = super()._tiles(sizes, options)
        if options.get("batch_num_images") is None:
            return tiles
        counts = torch.as_tensor(options["batch_num_images"]).tolist()
        whole = [count > 1 for count in counts for _ in range(count)]
        if len(whole) != len(tiles):
            raise ValueError(f"batch_num_images names {len(whole)} images, but there are sizes of {len(tiles)}")
        return [1 if several else count for several, count in zip(whole, tiles, strict=True)]

    def _pack(self, tiles: Tensor, size: Tensor, newline: Tensor, options: Mapping[str, Any]) -> Tensor:
        ratio = options.get("vision_aspect_ratio", self.model.config.vision_aspect_ratio)
        packed: tuple[list[Tensor], Tensor] = self.core.pack_image_features(
            [tiles], [size], image_newline=newline, vision_aspect_ratio=ratio
        )
        return packed[0][0]

    def _frame(self, patches: int) -> tuple[Patches, Tensor]:
        side = self._side
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()
        rows, columns, weights = bilinear_corners(*self.core.apply_pooling(places[None])[0].unbind(1))
        pooled = round(len(rows) ** 0.5)
        cells = torch.cartesian_prod(torch.arange(pooled), torch.arange(pooled))
        return Patches(rows * side + columns, weights), cells

    def _video_features(self, patches: Patches, entered: Tensor) -> Tensor:
        return patches.flatten_values(entered, CORNERS)

    def patches_for_relevance(self, encoded: Encoded) -> Tensor:
        """Return the weighted means of the tokens' patches."""
        patches, weights = unflatten_values(encoded.encoder_features, CORNERS)
        return (patches * weights).sum(2)

"""Images of LLaVA-NeXT, LLaVA-NeXT-Video and LLaVA-OneVision: a thumbnail, tiles, and a newline after each row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
    unpad_image,
)

from idsel_core.backbones.llava_onevision import CORNERS
from idsel_core.study.cost.shapes import Tower, checked_size, pair
from idsel_core.study.cost.towers.llava import projected


def anyres(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    """Return the tower for the only image of a prompt."""
    size, side = checked_size(config, size), int(config.vision_config.image_size)
    given: Any = (list(size), config.image_grid_pinpoints, side)
    tiles = int(image_size_to_num_patches(*given))
    whole = projected(config, width, (side, side), tiles)
    shape_of: Any = get_anyres_image_grid_shape
    rows, columns = shape_of(*given)
    patches = side // pair(config.vision_config.patch_size)[0]
    if whole.visual != tiles * patches**2:
        raise ValueError(
            f"vision_feature_select_strategy of type {config.model_type!r} must leave one token a patch, not "
            f"{config.vision_feature_select_strategy!r}"
        )
    shown: Any = unpad_image
    _, height, breadth = shown(torch.empty(1, rows * patches, columns * patches, device="meta"), size).shape
    features = whole.features
    if config.model_type == "llava_onevision":
        # Large images are scaled down, so that a token lies between patches.
        features = CORNERS * (features + 1)
        scale = (height * breadth / (int(config.vision_aspect_ratio.removeprefix("anyres_max_")) * patches**2)) ** 0.5
        if scale > 1.1:
            height, breadth = int(height // scale), int(breadth // scale)
    # A newline ends each row, and the thumbnail comes first.
    visual = patches**2 + height * (breadth + 1)
    beside = {"image_sizes": [list(size)]}
    return replace(whole, pixels=(1, *whole.pixels), visual=visual, features=features, beside=beside)

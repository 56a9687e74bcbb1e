"""Qwen-VL since Qwen2: images of any size as patches that are merged into tokens; windows; deepstack."""

from __future__ import annotations

from typing import Any

from idsel_core.study.cost.shapes import Tower, checked_size


def qwen_vl(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    """Return the tower of Qwen2-VL, Qwen2.5-VL or Qwen3-VL."""
    vision, kind = config.vision_config, config.model_type
    merge = vision.spatial_merge_size
    size = checked_size(config, size, (merge * vision.patch_size,) * 2)
    rows, columns = (side // vision.patch_size for side in size)
    patches = rows * columns
    hidden = vision.embed_dim if kind == "qwen2_vl" else vision.hidden_size
    intermediate = int(hidden * vision.mlp_ratio) if kind == "qwen2_vl" else vision.intermediate_size
    pairs = [patches**2] * vision.depth
    if kind == "qwen2_5_vl":
        window = vision.window_size // vision.patch_size
        down, across = (sum(side**2 for side in _window_lengths(length, window)) for length in (rows, columns))
        inside = down * across
        pairs = [patches**2 if layer in vision.fullatt_block_indexes else inside for layer in range(vision.depth)]
    visual, features = patches // merge**2, hidden * merge**2
    planes = len(vision.deepstack_visual_indexes) if kind == "qwen3_vl" else 0
    numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return Tower(
        pixels=(patches, numbers),
        embedding=2 * patches * numbers * hidden,
        tokens=patches,
        visual=visual,
        features=features,
        hidden=hidden,
        query=hidden,
        intermediate=intermediate,
        matrices=3 if kind == "qwen2_5_vl" else 2,
        pairs=tuple(pairs),
        rows=patches**2,
        pooling=0,
        projections=((visual, features, features), (visual, features, width)) * (1 + planes),
        beside={"image_grid_thw": [[1, rows, columns]]},
    )


def _window_lengths(length: int, window: int) -> list[int]:
    return [min(window, length - start) for start in range(0, length, window)]

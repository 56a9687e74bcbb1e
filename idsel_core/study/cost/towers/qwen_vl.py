"""Qwen-VL since Qwen2: images and videos of any size as patches that are merged into tokens; windows; deepstack."""

from __future__ import annotations

from typing import Any

from idsel_core.study.cost.shapes import Tower, checked_size


def qwen_vl(config: Any, width: int, size: tuple[int, int] | None, frames: int = 1) -> Tower:
    """Return the tower of Qwen2-VL, Qwen2.5-VL or Qwen3-VL on an image, or on the frames of a video.

    The processor joins a few frames, two by default, to one layer of patches; patches attend to those of their layer.
    Raises ValueError if a size is not one that the processor gives.
    """
    vision, kind = config.vision_config, config.model_type
    merge = vision.spatial_merge_size
    size = checked_size(config, size, (merge * vision.patch_size,) * 2)
    rows, columns = (side // vision.patch_size for side in size)
    if frames < 1:
        raise ValueError(f"a video must have 1 frame or more, not {frames}")
    planes, per_plane = -(-frames // vision.temporal_patch_size), rows * columns
    patches = planes * per_plane
    hidden = vision.embed_dim if kind == "qwen2_vl" else vision.hidden_size
    intermediate = int(hidden * vision.mlp_ratio) if kind == "qwen2_vl" else vision.intermediate_size
    everywhere = planes * per_plane**2
    pairs = [everywhere] * vision.depth
    if kind == "qwen2_5_vl":
        window = vision.window_size // vision.patch_size
        down, across = (sum(side**2 for side in _window_lengths(length, window)) for length in (rows, columns))
        inside = planes * down * across
        pairs = [everywhere if layer in vision.fullatt_block_indexes else inside for layer in range(vision.depth)]
    visual, features = patches // merge**2, hidden * merge**2
    taps = len(vision.deepstack_visual_indexes) if kind == "qwen3_vl" else 0
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
        rows=everywhere,
        pooling=0,
        projections=((visual, features, features), (visual, features, width)) * (1 + taps),
        beside={"image_grid_thw": [[planes, rows, columns]]},
    )


def _window_lengths(length: int, window: int) -> list[int]:
    return [min(window, length - start) for start in range(0, length, window)]

"""A plain vision tower, with or without [CLS]: all patches of a tile attend to each other."""

from __future__ import annotations

from typing import Any

from idsel_core.study.cost.shapes import Tower, pair

TOWERS = ("clip_vision_model", "dinov2", "siglip_vision_model", "vit")
"""Model types of vision towers that are counted in LLaVA and in families with its projector."""

_NO_CLS = ("idefics3_vision", "siglip_vision_model", "smolvlm_vision")


def plain(vision: Any, size: tuple[int, int], tiles: int = 1) -> Tower:
    """Return a tower on `tiles` tiles of `size` pixels, without a projector; its visual tokens are all patches.

    Raises ValueError if a tile is smaller than a patch.
    """
    kind, patch = vision.model_type, pair(vision.patch_size)
    if size[0] < patch[0] or size[1] < patch[1]:
        raise ValueError(
            f"image_size must be at least a patch, {patch[0]} x {patch[1]} pixels, not {size[0]} x {size[1]}"
        )
    patches = (size[0] // patch[0]) * (size[1] // patch[1])
    has_cls = kind not in _NO_CLS
    tokens, hidden = patches + has_cls, vision.hidden_size
    head = getattr(vision, "head_dim", None) or hidden // vision.num_attention_heads
    matrices, pooling = 2, 0
    if kind == "dinov2":
        intermediate = int(hidden * vision.mlp_ratio)
        if vision.use_swiglu_ffn:
            matrices, intermediate = 3, (int(intermediate * 2 / 3) + 7) // 8 * 8
    else:
        intermediate = vision.intermediate_size
    if kind == "siglip_vision_model" and vision.vision_use_head:
        pooling = 4 * hidden * ((1 + tokens) * hidden + tokens + intermediate)
    elif kind == "vit":
        pooling = 2 * hidden * vision.pooler_output_size
    return Tower(
        pixels=(tiles, vision.num_channels, *size),
        embedding=2 * tiles * patches * vision.num_channels * patch[0] * patch[1] * hidden,
        tokens=tiles * tokens,
        visual=tiles * patches,
        features=hidden,
        hidden=hidden,
        query=vision.num_attention_heads * head,
        intermediate=intermediate,
        matrices=matrices,
        pairs=(tiles * tokens**2,) * vision.num_hidden_layers,
        rows=tiles * tokens * (1 if has_cls else tokens),
        pooling=tiles * pooling,
        projections=(),
    )

"""Tiles of one size, with a thumbnail if there are several, and patches that are pooled into tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from idsel_core.study.cost.shapes import Tower, checked_size, pair
from idsel_core.study.cost.towers.plain import plain


def internvl(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    """Return the tower of InternVL, whose projector has two matrices; one tile by default."""
    tower = _pooled(config, size or pair(config.vision_config.image_size), round(1 / config.downsample_ratio))
    return replace(tower, projections=((tower.visual, tower.features, width), (tower.visual, width, width)))


def idefics3(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    """Return the tower of Idefics3 or SmolVLM, whose projector is one matrix."""
    tower = _pooled(config, size, config.scale_factor)
    # The model takes tiles by prompt.
    return replace(tower, pixels=(1, *tower.pixels), projections=((tower.visual, tower.features, width),))


def gemma3(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    """Return the tower of Gemma 3, which projects means of patches; raises ValueError for another image size."""
    own = pair(config.vision_config.image_size)
    if size not in (None, own):
        raise ValueError(f"images of type 'gemma3' are {own[0]} x {own[1]} pixels, not {size[0]} x {size[1]}")
    tower, visual = plain(config.vision_config, own), int(config.mm_tokens_per_image)
    return replace(tower, visual=visual, projections=((visual, tower.features, width),))


def _pooled(config: Any, size: tuple[int, int] | None, factor: int) -> Tower:
    """Return a tower on the tiles of an image, whose tokens are squares of `factor` x `factor` patches."""
    tile = pair(config.vision_config.image_size)
    rows, columns = (side // own for side, own in zip(checked_size(config, size, tile), tile, strict=True))
    tiles = rows * columns + (rows * columns > 1)
    tower = plain(config.vision_config, tile, tiles)
    patches = tower.visual // tiles
    return replace(tower, visual=tiles * (patches // factor**2), features=tower.hidden * factor**2)

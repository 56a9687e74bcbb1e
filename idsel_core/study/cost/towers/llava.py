"""LLaVA-1.5, images of Video-LLaVA, and PaliGemma: one tile of any size, all of whose patches are projected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from idsel_core.study.cost.shapes import Tower, check_type, pair
from idsel_core.study.cost.towers.plain import TOWERS, plain


def llava(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    """Return the tower of LLaVA, or of Video-LLaVA for an image."""
    return projected(config, width, _or_own(config, size), 1)


def paligemma(config: Any, width: int, size: tuple[int, int] | None) -> Tower:
    """Return the tower of PaliGemma."""
    check_type("vision tower", config.vision_config.model_type, TOWERS)
    tower = plain(config.vision_config, _or_own(config, size))
    # PaliGemma projects all positions of the tower.
    return replace(tower, visual=tower.tokens, projections=((tower.tokens, tower.hidden, width),))


def projected(config: Any, width: int, size: tuple[int, int], tiles: int) -> Tower:
    """Return a tower on tiles of a size with LLaVA's projector; raises ValueError if the tower is not counted."""
    check_type("vision tower", config.vision_config.model_type, TOWERS)
    tower, chosen = plain(config.vision_config, size, tiles), config.vision_feature_layer
    features = tower.hidden * (1 if isinstance(chosen, int) else len(chosen))
    visual = tower.tokens - tiles * (config.vision_feature_select_strategy == "default")
    projections = ((visual, features, width), (visual, width, width))
    return replace(tower, visual=visual, features=features, projections=projections)


def _or_own(config: Any, size: tuple[int, int] | None) -> tuple[int, int]:
    return pair(config.vision_config.image_size) if size is None else size

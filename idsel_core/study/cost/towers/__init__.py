"""Towers on one image or clip, read from the configurations of whole models: one function a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from idsel_core.study.cost.shapes import Tower
from idsel_core.study.cost.towers.anyres import anyres
from idsel_core.study.cost.towers.llava import llava, paligemma
from idsel_core.study.cost.towers.plain import TOWERS
from idsel_core.study.cost.towers.qwen2_audio import qwen2_audio
from idsel_core.study.cost.towers.qwen_vl import qwen_vl
from idsel_core.study.cost.towers.tiled import gemma3, idefics3, internvl

__all__ = ["FAMILIES", "TOWERS"]

FAMILIES: Mapping[str, Callable[[Any, int, tuple[int, int] | None], Tower]] = {
    "gemma3": gemma3,
    "idefics3": idefics3,
    "internvl": internvl,
    "llava": llava,
    "llava_next": anyres,
    "llava_next_video": anyres,
    "llava_onevision": anyres,
    "paligemma": paligemma,
    "qwen2_5_vl": qwen_vl,
    "qwen2_audio": qwen2_audio,
    "qwen2_vl": qwen_vl,
    "qwen3_vl": qwen_vl,
    "smolvlm": idefics3,
    "video_llava": llava,
}
"""By model type, the function that returns its tower from a configuration, the language model's width and a size."""

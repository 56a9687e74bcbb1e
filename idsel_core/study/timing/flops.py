"""Analytic FLOPs of the phases of a timed batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from idsel_core.backbones import Backbone
from idsel_core.methods import Method
from idsel_core.study.cost import COUNTED_METHODS, flops_analytic, flops_analytic_step, full_budget
from idsel_core.study.cost.shapes import Size, pair
from idsel_core.study.timing.records import END_TO_END


def phase_flops(
    backbone: Backbone, inputs: Mapping[str, Any], method: Method | None, layers: list[int], new_tokens: int
) -> dict[str, int]:
    """Return the analytic FLOPs of a batch by phase, as far as they are known.

    They are unknown where prompts or images differ, and where a prompt has not just one image.
    """
    config, ids, mask = backbone.model.config, inputs["input_ids"], inputs.get("attention_mask")
    visual = backbone.placeholders(ids).sum(1)
    if bool((visual != visual[0]).any()) or (mask is not None and not bool(mask.all())):
        return {}
    batch, text = len(ids), ids.shape[1] - int(visual[0])
    try:
        if int(visual[0]) != full_budget(config, _image_size(backbone, inputs, None)):
            return {}
        size = _image_size(backbone, inputs, method)
        counted = method if method is not None and type(method) in COUNTED_METHODS else None
        cost = flops_analytic(config, layers, text, image_size=size, method=counted)
        steps = [flops_analytic_step(config, layers, text + step).total for step in range(new_tokens)]
    except ValueError:
        return {}
    known = {"encode": cost.encode, "prefill": cost.language_model, "decode": sum(steps) // new_tokens}
    if method is None or counted is not None:
        known |= {"select": cost.select, END_TO_END: cost.total + sum(steps)}
    return {phase: batch * flops for phase, flops in known.items()}


def _image_size(backbone: Backbone, inputs: Mapping[str, Any], method: Method | None) -> Size:
    """Return height and width of the first image, in the size that a method wants, or mel frames of the first clip.

    Raises ValueError if the inputs hold a video alone.
    """
    if inputs.get("feature_attention_mask") is not None:
        return int(inputs["feature_attention_mask"][0].sum())
    pixels = backbone.image_arguments(inputs).get("pixel_values")
    if pixels is None:
        raise ValueError("inputs hold no image")
    patch = pair(backbone.model.config.vision_config.patch_size)
    if inputs.get("image_sizes") is not None:
        rows, columns = inputs["image_sizes"][0].tolist()
        return rows, columns
    grid = None if method is None else backbone.target_grid(method, **backbone.image_arguments(inputs))
    if inputs.get("image_grid_thw") is not None:
        grid = inputs["image_grid_thw"][0, 1:].tolist()
    if grid is None:
        rows, columns = pixels.shape[-2:]
        tiles = pixels.shape[:-3].numel() // len(inputs["input_ids"])
        # The last of several tiles is a thumbnail.
        return rows, columns * max(1, tiles - 1)
    return grid[0] * patch[0], grid[1] * patch[1]

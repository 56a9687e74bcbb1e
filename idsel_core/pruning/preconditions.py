"""What a call must be like to be pruned, and what is added to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from idsel_core.backbones import Backbone
from idsel_core.backbones._shared.prompts import PER_TOKEN
from idsel_core.backbones.in_llm.checks import check_decoder
from idsel_core.methods import InLLM
from idsel_core.pruning.arguments import cached_tokens, check_tensors, setting_of, with_full_mask


def prepared_for_drops(backbone: Backbone, method: InLLM, inputs: dict[str, Any], generating: bool) -> dict[str, Any]:
    """Return the arguments of a call in which tokens are dropped between layers; ValueError where that cannot be."""
    check_decoder(backbone.language_model)
    why = f"{method.name} drops tokens inside the language model while it reads the prompt, whole and once"
    if generating:
        if setting_of(backbone.model, inputs, "use_cache") is False:
            raise ValueError(f"{why}: generate() needs use_cache=True")
        if setting_of(backbone.model, inputs, "prefill_chunk_size") is not None:
            raise ValueError(f"{why}: generate() needs prefill_chunk_size=None")
        return inputs
    # Without a mask and a cache, gaps between positions would be read as borders of packed sequences.
    return inputs if inputs.get("attention_mask") is not None else with_full_mask(inputs)


def prepared_to_keep_positions(backbone: Backbone, inputs: dict[str, Any], generating: bool) -> dict[str, Any]:
    """Return the arguments of a call whose tokens keep their positions; ValueError where that cannot be."""
    if backbone.position_axes == 1:
        mask = inputs.get("attention_mask")
        check_window(
            backbone, inputs, generating, inputs["input_ids"].shape[1] if mask is None else int(mask.sum(1).max())
        )
    if backbone.position_axes == 1 and generating:
        if setting_of(backbone.model, inputs, "use_cache") is False:
            raise ValueError(
                'positions="keep" needs use_cache=True: without a cache, generate() drops the mask and then reads '
                "gaps between positions as borders of packed sequences"
            )
        return inputs
    # What forward does by itself where generate counts from the mask; the mask keeps gaps from being borders.
    if inputs.get("position_ids") is None:
        inputs = {**inputs, "position_ids": backbone.full_positions(inputs, generating)}
    if backbone.position_axes > 1:
        return inputs
    return inputs if inputs.get("attention_mask") is not None else with_full_mask(inputs)


def check_window(backbone: Backbone, inputs: dict[str, Any], generating: bool, length: int) -> None:
    """Raise ValueError if `length` tokens, dropped ones among them, that keep their positions do not fit a window."""
    windows = [backbone.window(layer) for layer in range(backbone.decoder_layers)]
    window = min((size for size in windows if size is not None), default=None)
    if window is None:
        return
    if generating:
        new = setting_of(backbone.model, inputs, "max_new_tokens")
        length = max(length, setting_of(backbone.model, inputs, "max_length") or 0) if new is None else length + new
    if length > window:
        raise ValueError(
            f'positions="keep" cannot be had for {length} tokens, prompt and answer: layers of this model attend '
            f"within {window} columns, which after pruning reach further than {window} positions"
        )


def check_with_image(backbone: Backbone, inputs: dict[str, Any]) -> None:
    """Raise TypeError or ValueError where a call with pixels cannot be pruned, whatever the method."""
    input_ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if input_ids is None or inputs.get("inputs_embeds") is not None:
        raise ValueError("prune() needs the prompt as input_ids, not as inputs_embeds")
    check_tensors(inputs, (*PER_TOKEN, *backbone.pixel_inputs))
    if cached_tokens(inputs):
        raise ValueError("prune() cannot add an image to a cache that holds tokens; give the whole prompt at once")
    if isinstance(inputs.get("logits_to_keep"), Tensor):
        raise ValueError("logits_to_keep must be a number inside prune(), because columns move")
    if mask is not None and mask.shape != input_ids.shape:
        raise ValueError(f"attention_mask must be {tuple(input_ids.shape)}, as input_ids, not {tuple(mask.shape)}")


def check_without_image(backbone: Backbone, inputs: dict[str, Any]) -> None:
    """Raise ValueError where a call without pixels has image placeholders that no cache holds."""
    input_ids, cached = inputs.get("input_ids"), cached_tokens(inputs)
    if input_ids is None:
        return
    found = int(backbone.placeholders(input_ids).sum())
    if found and not cached:
        wanted = " or ".join(backbone.pixel_inputs)
        raise ValueError(f"the prompt holds {found} image placeholders, but there are no {wanted}")

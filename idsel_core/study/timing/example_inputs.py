"""Example inputs: prompts of random words around images of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig

from idsel_core.backbones import Backbone
from idsel_core.families import INPUT_KINDS
from idsel_core.study.cost.models import has_one_size, tower_of
from idsel_core.study.cost.shapes import Size, size_given


def example_inputs(
    config: PreTrainedConfig, text_tokens: int, image_size: Size | None = None, batch: int = 1, seed: int = 0
) -> dict[str, Tensor]:
    """Return prompts of random words, each around one image, or clip, of noise.

    Parameters
    ----------
    config : PreTrainedConfig
        Configuration of a model that `idsel_core.study.cost` counts.
    text_tokens : int
        Text tokens of a prompt, 2 or more: one before the image, the others behind it.
    image_size : int or tuple[int, int], optional
        As for `idsel_core.study.cost.full_budget`.
    batch : int
        Number of prompts.
    seed : int
        Seed of words and noise.

    Raises
    ------
    TypeError, ValueError
        If the model is not counted, has no images of this size, or a number is too small.
    """
    check_int("text_tokens", text_tokens, 2)
    check_int("batch", batch, 1)
    model: Any = config
    tower, sound = tower_of(config, image_size), getattr(model, "audio_token_id", None)
    image = int(model.image_token_id if sound is None else sound)
    generator = torch.Generator().manual_seed(seed)
    marks = {image, int(getattr(model, "video_token_id", None) or image)}
    words = torch.randint(model.get_text_config().vocab_size - len(marks), (batch, text_tokens), generator=generator)
    for mark in sorted(marks):
        words += (words >= mark).long()
    ids = torch.cat([words[:, :1], torch.full((batch, tower.visual), image), words[:, 1:]], 1)
    pixels = torch.randn(batch * tower.pixels[0], *tower.pixels[1:], generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), tower.name: pixels}
    inputs |= {name: torch.tensor(rows).repeat(batch, 1) for name, rows in tower.beside.items()}
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (ids == image).int()
    if model.model_type in ("gemma3", "paligemma"):
        inputs["token_type_ids"] = (ids == image).long() * (model.model_type == "gemma3")
    return inputs


def example_inputs_for(
    backbone: Backbone, processor: Any, text_tokens: int, image_size: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Return one such prompt for a model, where and in the type that it takes it.

    Parameters
    ----------
    backbone : Backbone
        The model.
    processor : Any
        Its processor, which says to what size it brings images.
    text_tokens : int
        As for `example_inputs`.
    image_size : sequence of int
        Height and width of the image in pixels, or mel frames of the clip; () takes the processor's size, or the
        longest clip.

    Raises
    ------
    TypeError, ValueError
        As of `example_inputs`; also if the model has no one size of images, and none is given.
    """
    model = backbone.model
    size: Any = size_given(image_size)
    if size is None and INPUT_KINDS[model.config.model_type] == "image":
        if not has_one_size(model.config):
            raise ValueError(
                f"images of a model of type {model.config.model_type!r} have many sizes: give image_size, such as "
                "[672, 672]"
            )
        blank = Image.new("RGB", (64, 64))
        size = tuple(processor.image_processor(images=blank, return_tensors="pt")["pixel_values"].shape[-2:])
    inputs = example_inputs(model.config, text_tokens, size)
    return {
        name: tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }


def check_int(name: str, value: Any, least: int) -> None:
    """Raise ValueError unless a value is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of {least} or more, not {value!r}")

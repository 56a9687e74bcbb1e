"""Read the sizes of models from their configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import PreTrainedConfig

from idsel_core.study.cost.shapes import Decoder, Size, Tower, check_type, pair
from idsel_core.study.cost.towers import FAMILIES
from idsel_core.study.cost.towers.qwen_vl import qwen_vl

LANGUAGE_MODELS = (
    "gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3",
    "qwen3_vl_text",
)  # fmt: skip
MODELS = tuple(FAMILIES)
VIDEO_FAMILIES = tuple(name for name, tower in FAMILIES.items() if tower is qwen_vl)
"""Model types that are counted: of language models, of whole models, and of those whose videos are counted."""

_ONE_SIZE = ("gemma3", "internvl", "llava", "paligemma", "video_llava")
_LATER: dict[str, Literal["image", "prompt"]] = {"gemma3": "image", "paligemma": "prompt"}


def decoder_of(config: Any) -> Decoder:
    """Return the sizes of a language model, from its configuration or a whole model's.

    Raises
    ------
    TypeError, ValueError
        If it is no configuration, or its model type is not counted.
    """
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(f"config must be a transformers configuration, not {type(config).__name__}")
    if _tower_config(config) is not None:
        check_type("model", config.model_type, MODELS)
    text: Any = config.get_text_config()
    check_type("language model", text.model_type, LANGUAGE_MODELS)
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    window = getattr(text, "sliding_window", None)
    return Decoder(
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        query=text.num_attention_heads * head,
        key=text.num_key_value_heads * head,
        vocabulary=text.vocab_size,
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        later=_LATER.get(str(config.model_type), "none"),
        every_logit=config.model_type == "qwen2_audio",
    )


def tower_of(config: Any, image_size: Size | None = None) -> Tower:
    """Return the sizes of a tower on an image, a video or a clip.

    Parameters
    ----------
    config : PreTrainedConfig
        Of a whole model, see `MODELS`.
    image_size : int or tuple[int, ...], optional
        As for `idsel_core.study.cost.full_budget`.

    Raises
    ------
    TypeError, ValueError
        If the model is not counted, or takes no image of this size.
    """
    decoder = decoder_of(config)
    if _tower_config(config) is None:
        raise ValueError(f"a configuration of type {config.model_type!r} has no vision tower; give a whole model's")
    if isinstance(image_size, Sequence) and len(image_size) == 3:
        check_type("video of model", config.model_type, VIDEO_FAMILIES)
        frames, *sides = image_size
        return qwen_vl(config, decoder.hidden, pair(sides), frames)
    return FAMILIES[config.model_type](config, decoder.hidden, None if image_size is None else pair(image_size))


def has_one_size(config: Any) -> bool:
    """Tell whether a model resizes all images to the tower's size."""
    return config.model_type in _ONE_SIZE


def _tower_config(config: Any) -> Any:
    """Return the configuration of the tower, None if there is none."""
    return getattr(config, "vision_config", None) or getattr(config, "audio_config", None)

"""Model families by the ``model_type`` of their configuration; one file holds one family."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from transformers import GenerationMixin, PreTrainedModel

from idsel_core.backbones._shared.contract import Backbone
from idsel_core.backbones._shared.encoded import Encoded
from idsel_core.backbones.gemma3 import Gemma3
from idsel_core.backbones.idefics3 import Idefics3
from idsel_core.backbones.internvl import InternVL
from idsel_core.backbones.llava import Llava
from idsel_core.backbones.llava_next import LlavaNext
from idsel_core.backbones.llava_next_video import LlavaNextVideo
from idsel_core.backbones.llava_onevision import LlavaOnevision
from idsel_core.backbones.paligemma import PaliGemma
from idsel_core.backbones.qwen2_audio import Qwen2Audio
from idsel_core.backbones.qwen3_vl import Qwen3VL
from idsel_core.backbones.qwen_vl import Qwen2_5VL, Qwen2VL
from idsel_core.backbones.relevance.clip import ClipCompanion
from idsel_core.backbones.relevance.companion import Companion, Relevance
from idsel_core.backbones.video_llava import VideoLlava
from idsel_core.backbones.whisper import Whisper

__all__ = ["BACKBONES", "Backbone", "ClipCompanion", "Companion", "Encoded", "Relevance", "adapter_for"]

BACKBONES: Mapping[str, type[Backbone]] = {
    "gemma3": Gemma3,
    "idefics3": Idefics3,
    "internvl": InternVL,
    "llava": Llava,
    "llava_next": LlavaNext,
    "llava_next_video": LlavaNextVideo,
    "llava_onevision": LlavaOnevision,
    "paligemma": PaliGemma,
    "qwen2_5_vl": Qwen2_5VL,
    "qwen2_audio": Qwen2Audio,
    "qwen2_vl": Qwen2VL,
    "qwen3_vl": Qwen3VL,
    "smolvlm": Idefics3,
    "video_llava": VideoLlava,
    "whisper": Whisper,
}

_NEEDED = "5.19"


def adapter_for(model: Any, relevance: Relevance | None = None, processor: Any = None) -> Backbone:
    """Return the `Backbone` of a model.

    Parameters
    ----------
    model : PreTrainedModel
        A transformers model with ``generate``.
    relevance : Relevance, optional
        Shared image-text space of the view ``relevance``, for example a `Companion`.
    processor : ProcessorMixin or PreTrainedTokenizerBase, optional
        Processor or tokenizer of the prompts, whose chat template tells what the user says in them. By default the one
        that `load` gave, or that lies with the weights.

    Raises
    ------
    TypeError
        If `model` is not a transformers model with ``generate``, or `processor` has no tokenizer.
    ValueError
        If its family is not supported, or transformers is too old for it.
    """
    if not isinstance(model, PreTrainedModel) or not isinstance(model, GenerationMixin):
        raise TypeError(f"model must be a transformers model with generate(), not {type(model).__name__}")
    family = model.config.model_type
    if family not in BACKBONES:
        raise ValueError(f"model type {family!r} is not supported; supported: {', '.join(sorted(BACKBONES))}")
    needed = BACKBONES[family].features_input
    if needed not in inspect.signature(model.forward).parameters:
        raise ValueError(
            f"{type(model).__name__} of transformers {transformers.__version__} takes no {needed}; "
            f"install transformers {_NEEDED} or newer"
        )
    return BACKBONES[family](model, relevance, processor)

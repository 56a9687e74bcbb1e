"""The model families that are supported, by the ``model_type`` of their configuration; no model is imported here."""

from collections.abc import Mapping
from typing import Final, Literal

INPUT_KINDS: Final[Mapping[str, Literal["image", "audio"]]] = {
    "gemma3": "image",
    "idefics3": "image",
    "internvl": "image",
    "llava": "image",
    "llava_next": "image",
    "llava_next_video": "image",
    "llava_onevision": "image",
    "paligemma": "image",
    "qwen2_5_vl": "image",
    "qwen2_audio": "audio",
    "qwen2_vl": "image",
    "qwen3_vl": "image",
    "smolvlm": "image",
    "video_llava": "image",
    "whisper": "audio",
}
"""What each family is given beside text; an audio clip takes the place of an image."""
SPEECH: Final = ("whisper",)
"""Those that write down what is said and take no questions."""

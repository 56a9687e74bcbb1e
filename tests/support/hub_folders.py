"""Tiny random models of every family, saved with a real processor and a chat template like checkpoints of the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw
from scipy.io import wavfile
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    CLIPImageProcessorPil,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InternVLProcessor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaNextVideoProcessor,
    LlavaOnevisionImageProcessorPil,
    LlavaOnevisionProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2AudioProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    WhisperFeatureExtractor,
)

from idsel_core.loading.processors import NoVideos, assemble
from tests.support import families, tiny
from tests.support.families import FAMILIES

WORDS = "what is in the picture ? which color how many are there yes no red blue green two user assistant"
SIDE = {"height": 24, "width": 24}
RATE = 16000
"""Samples a second of the clips that the tiny Qwen2-Audio takes; it takes a second of them."""
PATCHES = {"patch_size": 4, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PINPOINTS = [[24, 48], [48, 24], [48, 48], [72, 24]]


def tokenizer(marks: dict[str, int], **named: str) -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with these marks at their ids, of as many words as the tiny models have."""
    by_id = {number: mark for mark, number in marks.items()}
    fixed = {0: "<pad>", 1: "<s>", 2: "</s>", 79: "<unk>", **by_id}
    words = iter(dict.fromkeys(WORDS.split()))
    vocabulary: dict[str, int] = {}
    for number in range(families.VOCABULARY):
        word = fixed.get(number) or next(words, None) or f"w{number}"
        vocabulary[word] = number
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[?.:]"), behavior="removed", invert=True)
    finished = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token=fixed[0],
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        extra_special_tokens=named,
    )
    finished.add_tokens(list(marks), special_tokens=True)
    return finished


def template(image: str) -> str:
    """Return a chat template that writes `image` for each image."""
    return (
        "{{ '<s>' }}{% for m in messages %} {{ m['role'] }} :{% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "{% else %} {{ c['text'] }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} assistant :"
        "{% endif %}"
    )


def _qwen(kind: Any) -> Any:
    marks = {"<|image_pad|>": 90, "<|video_pad|>": 91, "<|vision_start|>": 92, "<|vision_end|>": 93}
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 32 * 32}
    )
    parts = [images, tokenizer(marks), NoVideos()]
    return assemble(kind, parts, {"chat_template": template("<|vision_start|><|image_pad|><|vision_end|>")})


def _gemma3() -> Any:
    names = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image>"}
    words = tokenizer({"<image>": 90, "<boi>": 92, "<eoi>": 93}, **names)
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32}, image_seq_length=16)
    return Gemma3Processor(images, words, image_seq_length=16, chat_template=template("<boi>"))


IDEFICS = {
    "<image>": 90, "<fake_token_around_image>": 94, "<global-img>": 95, "<end_of_utterance>": 96,
    **{f"<row_{row + 1}_col_{column + 1}>": 80 + 3 * row + column for row in range(3) for column in range(3)},
}  # fmt: skip


def _idefics3() -> Any:
    images = Idefics3ImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": 24})
    return Idefics3Processor(images, tokenizer(IDEFICS), image_seq_len=9, chat_template=template("<image>"))


def _smolvlm() -> Any:
    images = SmolVLMImageProcessorPil(size={"longest_edge": 72}, max_image_size={"longest_edge": 36})
    parts = [images, tokenizer(IDEFICS), NoVideos()]
    return assemble(SmolVLMProcessor, parts, {"image_seq_len": 9, "chat_template": template("<image>")})


def _internvl() -> Any:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer({"<IMG_CONTEXT>": 90, "<video>": 91, "<img>": 92, "</img>": 93}, **names)
    images = GotOcr2ImageProcessorPil(size=SIDE, crop_to_patches=True, min_patches=1, max_patches=4)
    settings = {"image_seq_length": 9, "chat_template": template("<IMG_CONTEXT>")}
    return assemble(InternVLProcessor, [images, words, NoVideos()], settings)


def _llava() -> Any:
    images = CLIPImageProcessorPil(size=SIDE, crop_size=SIDE, do_center_crop=False)
    return LlavaProcessor(images, tokenizer({"<image>": tiny.IMAGE}), **PATCHES, chat_template=template("<image>"))


def _next(kind: Any, *beside: Any) -> Any:
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 24}, crop_size=SIDE, image_grid_pinpoints=PINPOINTS)
    words = tokenizer({"<image>": 90, "<video>": 91})
    return assemble(kind, [*beside, images, words], {**PATCHES, "chat_template": template("<image>")})


def _onevision() -> Any:
    images = LlavaOnevisionImageProcessorPil(
        size=SIDE, image_grid_pinpoints=[[24, 24], [24, 48], [48, 24], [48, 48], [96, 48]]
    )
    settings = {"num_image_tokens": 36, "vision_feature_select_strategy": "full"}
    settings |= {"vision_aspect_ratio": "anyres_max_4", "chat_template": template("<image>")}
    parts = [images, tokenizer({"<image>": 90, "<video>": 91}), NoVideos()]
    return assemble(LlavaOnevisionProcessor, parts, settings)


def _paligemma() -> Any:
    images = SiglipImageProcessorPil(size=SIDE, image_seq_length=36)
    images.image_seq_length = 36
    return PaliGemmaProcessor(images, tokenizer({"<image>": 90}, image_token="<image>"))


def _video_llava() -> Any:
    images = VideoLlavaImageProcessor(size={"shortest_edge": 24}, crop_size=SIDE)
    parts = [images, NoVideos(), tokenizer({"<image>": 90, "<video>": 91})]
    return assemble(VideoLlavaProcessor, parts, {**PATCHES, "chat_template": template("<image>")})


def _qwen2_audio() -> Any:
    names = {"audio_token": "<|AUDIO|>", "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>"}
    names |= {"start_token": "<|im_start|>", "end_token": "<|im_end|>"}
    words = tokenizer(dict(zip(names.values(), (90, 92, 93, 94, 95), strict=True)), **names)
    # The chat template is the class's own, which is that of its checkpoints.
    return Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=8, chunk_length=1, sampling_rate=RATE), words)


PROCESSORS: dict[str, Callable[[], Any]] = {
    "llava": _llava,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "llava_next": lambda: _next(LlavaNextProcessor),
    "llava_next_video": lambda: _next(LlavaNextVideoProcessor, NoVideos()),
    "llava_onevision": _onevision,
    "paligemma": _paligemma,
    "qwen2_vl": lambda: _qwen(Qwen2VLProcessor),
    "qwen2_5_vl": lambda: _qwen(Qwen2_5_VLProcessor),
    "qwen3_vl": lambda: _qwen(Qwen3VLProcessor),
    "video_llava": _video_llava,
    "qwen2_audio": _qwen2_audio,
}
"""The processors of all families whose prompts hold visual tokens."""


def build(family: str) -> Any:
    """Return the tiny model of a family."""
    return tiny.build() if family == "llava" else FAMILIES[family].build()


def save(family: str, folder: Path) -> Path:
    """Save model and processor."""
    build(family).save_pretrained(folder)
    PROCESSORS[family]().save_pretrained(folder)
    return folder


def photographs(folder: Path, count: int = 4) -> Path:
    """Write a folder of pictures of different sizes with a table of questions, as a user would."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        picture = Image.effect_mandelbrot((30 + 17 * number, 60 - 9 * number), (-3, -2.5, 2, 2.5), 20 + number)
        picture = picture.convert("RGB")
        ImageDraw.Draw(picture).ellipse((4, 4, 20, 20), fill=("red", "blue", "green")[number % 3])
        picture.save(folder / f"photo{number}.png")
        rows.append({"image": f"photo{number}.png", "question": "what color is in the picture ?", "answer": "red"})
        rows.append({"image": f"photo{number}.png", "question": "how many are there ?", "answer": "two"})
    pd.DataFrame(rows).to_csv(folder / "photos.csv", index=False)
    return folder


def tone(seconds: float, hertz: float, rate: int = RATE) -> np.ndarray:
    """Return a sine of half of full scale, float64 (T,)."""
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def tones(folder: Path, count: int = 4) -> Path:
    """Write a folder of clips of different lengths with a table of questions, as a user would."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        rate = (16000, 8000, 44100)[number % 3]
        samples = tone(0.9 - 0.13 * number, 300.0 * 2**number, rate)
        wavfile.write(folder / f"tone{number}.wav", rate, (samples * 32767).astype(np.int16))
        rows.append({"audio": f"tone{number}.wav", "question": "what color is in the picture ?", "answer": "red"})
        rows.append({"audio": f"tone{number}.wav", "question": "how many are there ?", "answer": "two"})
    pd.DataFrame(rows).to_csv(folder / f"{folder.name}.csv", index=False)
    return folder


def own_data(family: str, folder: Path, count: int = 4) -> Path:
    """Write a folder of what a family is asked about, with a table of questions of the folder's name."""
    return (tones if family == "qwen2_audio" else photographs)(folder, count)

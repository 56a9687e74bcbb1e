"""Tiny random models saved like hub checkpoints, with the processors of their families and a tokenizer of words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GemmaConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

SPECIAL = (
    "<pad>", "<unk>", "<bos>", "<end_of_utterance>", "<image>", "<fake_token_around_image>", "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)  # fmt: skip
WORDS = (
    *("user", "assistant", ":", "?", ".", "Is", "there", "a", "the", "red", "blue", "letter", "circle", "star"),
    *("yes", "no", "maybe", "left", "right", "of"),
)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": len(SPECIAL) + len(WORDS) + 1100,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 4}


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<end_of_utterance>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, additional_special_tokens=list(SPECIAL[4:]), **names)


def write_idefics3(folder: Path) -> None:
    """Images of up to 2 x 2 tiles and a thumbnail, 9 tokens each."""
    torch.manual_seed(0)
    vision, text = {**VISION, "image_size": 24}, LlamaConfig(**TEXT)
    config = Idefics3Config(
        vision_config=vision, text_config=text, image_token_id=SPECIAL.index("<image>"), scale_factor=2, pad_token_id=0
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": 24})
    Idefics3Processor(images, tokenizer(), image_seq_len=9, chat_template=TEMPLATE).save_pretrained(folder)


def write_paligemma(folder: Path) -> None:
    """Images of 36 tokens, and no chat template."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(**VISION, image_size=24, vision_use_head=False)
    text = GemmaConfig(**TEXT, head_dim=8)
    config = PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=SPECIAL.index("<image>"), projection_dim=32
    )
    PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    images = SiglipImageProcessorPil(size={"height": 24, "width": 24})
    images.image_seq_length = 36
    PaliGemmaProcessor(images, tokenizer()).save_pretrained(folder)

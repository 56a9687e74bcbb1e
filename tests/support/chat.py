"""Chat templates of the families, tiny tokenizers for them, and prompts of conversations about images.

The templates have the forms of those that the families' checkpoints come with.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.support.families import BOS, END, IMAGE, PAD, START, VIDEO

SPECIAL = {
    PAD: "<pad>",
    BOS: "<s>",
    2: "</s>",
    86: "<|im_start|>",
    87: "<|im_end|>",
    88: "<start_of_turn>",
    89: "<end_of_turn>",
    IMAGE: "<image>",
    VIDEO: "<video>",
    START: "<|vision_start|>",
    END: "<|vision_end|>",
    94: "<fake_token_around_image>",
    97: "<end_of_utterance>",
    98: "<|audio_bos|>",
    99: "<|audio_eos|>",
}
TAGS = {**{81 + tile: f"<row_{tile // 3 + 1}_col_{tile % 3 + 1}>" for tile in range(5)}, 95: "<global-img>", 96: "\n\n"}
"""What processors write beside images; no special tokens."""
TIMES = TAGS | {81 + frame: f"<{frame}.5 seconds>" for frame in range(5)}
"""The same of Qwen3-VL, which writes the time of frames."""
LETTERS = "abcdefghijklmnopqrstuvwxyzUSERAINTY123:?.[]/,"

VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] + ' ' }}{% else %}"
    "{{ m['role'].upper() + ': ' }}{% for c in m['content'] %}{% if c['type'] in ('image', 'video') %}"
    "{{ '<' + c['type'] + '>\n' }}{% else %}{{ c['text'] + (' ' if m['role'] == 'user' else '</s>') }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'][0]['text'] + '</s>' }}{% else %}"
    "[INST] {% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] | trim }}{% else %}<image>\n{% endif %}"
    "{% endfor %} [/INST]{% endif %}{% endfor %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are tiny.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% elif c['type'] in ('image', 'video') %}"
    "<|vision_start|>{{ '<' + c['type'] + '>' }}<|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AUDIO = (
    "{% set n = namespace(value=0) %}"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are tiny.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}<|im_end|>\n"
    "{% else %}{% for c in m['content'] %}{% if 'audio' in c or c['type'] == 'audio' %}{% set n.value = n.value + 1 %}"
    "Audio {{ n.value }}: <|audio_bos|><image><|audio_eos|>\n{% elif 'text' in c %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INTERN = (
    CHATML.replace("<|vision_start|>", "")
    .replace("<|vision_end|>", "\n")
    .replace("{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are tiny.<|im_end|>\n{% endif %}", "")
)
IDEFICS = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}{% if m['content'][0]['type'] == 'image' %}:"
    "{% else %}: {% endif %}{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}<image>"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set system = messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'][0]['text'] + '\n\n' if system else '' %}"
    "{% for m in (messages[1:] if system else messages) %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('turns') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ first if loop.first else '' }}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] | trim }}{% else %}\n\n<|vision_start|><image>"
    "<|vision_end|>\n\n{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEMPLATES = {
    "gemma3": GEMMA,
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
    "internvl": INTERN,
    "llava": VICUNA,
    "llava_next": MISTRAL,
    "llava_next_video": VICUNA,
    "llava_onevision": INTERN,
    "qwen2_audio": AUDIO,
    "qwen2_vl": CHATML,
    "qwen2_5_vl": CHATML,
    "qwen3_vl": CHATML,
    "video_llava": VICUNA,
}
SENTENCE_PIECES = ("gemma3", "llava", "llava_next", "llava_next_video", "video_llava")
"""Families whose tokenizer joins words with a mark in front, not with bytes."""


@functools.cache
def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of at most 100 tokens, whose merges reach across the borders of turns, with the template."""
    pieces = family in SENTENCE_PIECES
    space, newline = ("▁", "\n") if pieces else ("Ġ", "Ċ")
    joined = [(space, "w"), ("a", "t"), ("U", "S"), ("E", "R"), ("?", newline), (":", space), (space, "A"), ("u", "s")]
    tags = TIMES if family == "qwen3_vl" else TAGS
    symbols = [*LETTERS, space, newline, *map("".join, joined)]
    vocabulary = {symbol: 3 + place for place, symbol in enumerate(symbols)}
    assert 3 + len(symbols) <= 81
    made = Tokenizer(models.BPE(vocabulary | {text: number for number, text in (SPECIAL | tags).items()}, joined))
    if pieces:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL.values()])
    made.add_tokens([AddedToken(text, normalized=False) for text in tags.values()])
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": list(SPECIAL.values())[3:]})
    fast.chat_template = TEMPLATES.get(family)
    return fast


def user(*parts: str | int) -> dict[str, Any]:
    """Return a user's turn of texts and of images, which are named by their sizes."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "picture", "size": p} for p in parts]
    return {"role": "user", "content": content}


def said(role: str, text: str) -> dict[str, Any]:
    """Return a turn of text alone."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def token_ids(family: Any, messages: Sequence[dict[str, Any]], answer: str | None = None) -> list[int]:
    """Return the prompt of a conversation, with the placeholders of its images, and with an answer behind it."""
    made, sizes, turns = tokenizer(family.name), [], []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] == "picture":
                sizes.append(part["size"])
                kind = "audio" if family.name == "qwen2_audio" else "image" if part["size"] >= 0 else "video"
                part = {"type": kind}
            parts.append(part)
        turns.append({**message, "content": parts})
    text = made.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    ids = []
    for number in made(text + (answer or ""), add_special_tokens=False)["input_ids"]:
        if number in (IMAGE, VIDEO):
            size = sizes.pop(0)
            marks = family.marks(size)
            # The template writes these two where the family has them.
            ids += marks[1:-1] if marks[0] == START else marks
        else:
            ids.append(number)
    return ids if ids[0] == BOS else [BOS, *ids]


def batch(family: Any, rows: Sequence[list[int]], sizes: Sequence[Sequence[int]], side: str = "left", seed: int = 0):
    """Return inputs of a model for prompts and the sizes of their images."""
    width = max(map(len, rows))
    padded = [[PAD] * (width - len(r)) + r if side == "left" else r + [PAD] * (width - len(r)) for r in rows]
    return family._inputs(torch.tensor(padded), sizes, range(len(rows)), seed)


def plain(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())


def said_by(family: str, ids: Tensor, words: Tensor) -> str:
    """Return the text of marked tokens without white space."""
    return plain("".join(tokenizer(family).decode([number]) for number in ids[words].tolist()))

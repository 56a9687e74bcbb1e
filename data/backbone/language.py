"""Build the embedded backbone: its word-level tokenizer, processor and LLaVA configuration."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import CLIPImageProcessorPil, LlamaConfig, LlavaConfig, LlavaProcessor, PreTrainedTokenizerFast

from data.backbone.tower import tower_config
from data.scenes.ask import vocabulary
from data.scenes.draw import SIDE

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
WORD = r"<image>|\([A-D]\)|[A-Za-z]+(?:-[a-z]+)*|[0-9]|[^\sA-Za-z0-9]"
PREFIX = "USER: <image>"
SUFFIX = "ASSISTANT:"


def prompt(question: str) -> str:
    """Return the prompt of one question about one image."""
    return f"{PREFIX} {question} {SUFFIX}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer; every word of the data set is one token."""
    words = {w: i for i, w in enumerate(dict.fromkeys((*SPECIAL, *vocabulary())))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", words["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


def build_processor() -> LlavaProcessor:
    """Return the processor: 336 x 336 pixels, ImageNet statistics, 576 placeholders an image."""
    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{% if m['role'] == 'user' %}USER: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% else %}ASSISTANT: "
        "{{ m['content'][0]['text'] }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    )


def build_config(hidden: int = 192, layers: int = 5, heads: int = 4, intermediate: int = 512) -> LlavaConfig:
    """Return the LLaVA configuration of the embedded backbone."""
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
        initializer_range=0.04,
    )
    return LlavaConfig(
        vision_config=tower_config(),
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=576,
    )

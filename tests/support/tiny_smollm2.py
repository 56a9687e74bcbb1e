"""The backbone on SmolLM2 in its shape, 30 layers whose heads share keys, but tiny, and what is trained of it."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.smollm2.assemble import PAD, RESERVED, START, build, build_processor_of, is_kept, write
from data.smollm2.language import END
from data.smollm2.student import Student

LAYERS, WIDTH = 30, 12


def tokenizer() -> PreTrainedTokenizerFast:
    """Return SmolLM2's kind of tokenizer, without merges: a token a byte."""
    special = [PAD, START, END, RESERVED]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(BPE({word: place for place, word in enumerate(words)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=START, eos_token=END, pad_token=END)


def language_model(words: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a language model whose weights are large enough for images and words to matter."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words),
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=LAYERS,
            num_attention_heads=3,
            num_key_value_heads=1,
            rope_parameters={"rope_theta": 1e5, "rope_type": "default"},
            tie_word_embeddings=True,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
            initializer_range=0.15,
        )
    )
    return model.eval()


def tower() -> Dinov2Model:
    """Return a tower of two blocks on patches of 14 pixels."""
    torch.manual_seed(1)
    config = Dinov2Config(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, patch_size=14, mlp_ratio=2)
    return Dinov2Model(config).eval()


def trained(student: Student) -> dict[str, Tensor]:
    """Return made-up values for all that is trained of a student."""
    torch.manual_seed(2)
    made = {name: 0.1 * torch.randn_like(value) for name, value in student.trained().items()}
    return made | {"std": torch.rand(WIDTH) + 0.5}


def write_folder(folder: Path) -> None:
    """Write a model folder as `data.smollm2.assemble` does."""
    words = tokenizer()
    kept = {name: value for name, value in trained(Student(language_model(words), WIDTH)).items() if is_kept(name)}
    processor = build_processor_of(words)
    write(build(tower(), language_model(words), processor, kept), processor, folder)

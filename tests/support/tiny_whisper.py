"""A tiny random Whisper, batches of clips for it, and a folder with one, its processor and clips."""

from __future__ import annotations

import csv
import hashlib
import wave

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

WINDOW, BINS, VOCABULARY, END, PAD, START, NO_TIMES = 50, 8, 60, 57, 58, 50, 59
STEPS = (41, 100, 70)
TOKENS = [21, 50, 35]
IDS = [START, 3, 4]
GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def build(attention="sdpa", window=WINDOW, bins=BINS):
    """Return a model whose weights are large enough for clips to matter."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=bins,
        max_source_positions=window,
        max_target_positions=64,
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25)
    settings = {"no_timestamps_token_id": NO_TIMES, "is_multilingual": False}
    settings |= dict.fromkeys(("max_length", "suppress_tokens", "begin_suppress_tokens"))
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    model.set_attn_implementation(attention)
    return model


def clips(steps=STEPS, seed=0):
    """Return a batch of clips of so many steps, with silence behind them."""
    real = (torch.arange(2 * WINDOW) < torch.tensor(steps)[:, None]).long()
    noise = [torch.randn(BINS, 2 * WINDOW, generator=torch.Generator().manual_seed(seed + n)) for n in steps]
    spectra = torch.stack(noise) * real[:, None] - 0.5 * (1 - real[:, None])
    return {"input_features": spectra, "attention_mask": real}


def row(inputs, at):
    """Return one clip of a batch."""
    return {name: value[at : at + 1] for name, value in inputs.items()}


def write_folder(folder, sentences):
    """Write a model for 30 seconds of sound with its processor, and clips in which noise says the sentences."""
    model = build(window=1500, bins=80)
    model.save_pretrained(folder / "model")
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=f"w{PAD}", eos_token=f"w{END}")
    fast.save_pretrained(folder / "model")
    WhisperFeatureExtractor().save_pretrained(folder / "model")
    (folder / "clips").mkdir()
    with (folder / "clips/clips.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(("clip_id", "source", "voice", "speed", "seconds", "sha256", "text"))
        for number, (source, text) in enumerate(sentences):
            noise = np.random.default_rng(number).normal(0, 3000, 8000 + 1600 * number).astype("<i2").tobytes()
            with wave.open(str(folder / f"clips/clip-{number}.wav"), "wb") as file:
                file.setnchannels(1)
                file.setsampwidth(2)
                file.setframerate(16000)
                file.writeframes(noise)
            seconds = len(noise) / 2 / 16000
            writer.writerow((f"clip-{number}", source, "", "", seconds, hashlib.sha256(noise).hexdigest(), text))

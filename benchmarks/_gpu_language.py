"""A step of gpu.py: a full-size language model on full prompts and on prompts cut by hand, with plain transformers.

It needs no more of transformers than Llama and Qwen2, so it also runs where transformers is too old for the backbones.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch

CONFIGS = Path(__file__).resolve().parents[1] / "idsel_core/loading/configs"
TEXT = 64
"""Text tokens of a prompt."""
NEW = 8
"""Tokens that are decoded after the first one."""


def build(name: str, device: str, small: bool) -> Any:
    """Return the language model of a named model, with random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    given = json.loads((CONFIGS / f"{name}.json").read_text())["text_config"]
    kind = Qwen2Config if given.pop("model_type").startswith("qwen2") else LlamaConfig
    # Older ones know the base of the rotary positions by another name. It does not change the work.
    rotary = given.pop("rope_parameters", {})
    given |= {"rope_theta": rotary.get("rope_theta", 10000.0)}
    for end in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given[end] = None
    if small:
        given |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 100}
        given |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = kind(**given)
    torch.manual_seed(0)
    dtype = torch.float32 if small else torch.bfloat16
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return AutoModelForCausalLM.from_config(config).to(device, dtype).eval()
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def lap(model: Any, ids: torch.Tensor, device: str) -> dict[str, Any]:
    """Return the milliseconds of prefill and of a decoded token, the bytes of the cache and the peak of memory."""
    marks, peaks = [mark(device)], []
    # Without the LM head, of which older ones ask the logits of the whole prompt.
    output = model.model(input_ids=ids, use_cache=True)
    token = model.lm_head(output.last_hidden_state[:, -1:]).argmax(-1)
    marks.append(mark(device))
    peaks.append(peak(device))
    held = cache_bytes(output.past_key_values)
    for _ in range(NEW):
        output = model.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        token = model.lm_head(output.last_hidden_state).argmax(-1)
    marks.append(mark(device))
    peaks.append(peak(device))
    prefill, decode = (1e3 * (after - before) for before, after in itertools.pairwise(marks))
    return {"prefill": prefill, "decode": decode / NEW, "whole": prefill + decode, "cache_bytes": held, "peaks": peaks}


def cache_bytes(cache: Any) -> int:
    """Return the bytes of keys and values, in the classes of older and newer transformers."""
    if hasattr(cache, "layers"):
        return sum(held.nbytes for layer in cache.layers for held in (layer.keys, layer.values))
    layers = cache.to_legacy_cache() if hasattr(cache, "to_legacy_cache") else cache
    return sum(held.nbytes for layer in layers for held in layer[:2])


def mark(device: str) -> float:
    """Wait until a device is idle; return the time in seconds."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak(device: str) -> int | None:
    """Return the most bytes of tensors since the last call, None where the device does not tell."""
    if device != "cuda":
        return None
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return most


def measure(
    *, device: str, small: bool, model: str, tokens: int, budgets: tuple[int, ...], image_size: Any = None
) -> list[dict[str, Any]]:
    """Return one row a phase and number of visual tokens; these take turns."""
    language = build(model, device, small)
    prompts = {
        kept: torch.randint(language.config.vocab_size, (1, kept + TEXT), device=device) for kept in (tokens, *budgets)
    }
    runs, warmup = (1, 0) if small else (21, 3)
    laps: dict[int, list[dict[str, Any]]] = {kept: [] for kept in prompts}
    for turn in range(runs + warmup):
        for kept, ids in prompts.items():
            peak(device)
            one = lap(language, ids, device)
            if turn >= warmup:
                laps[kept].append(one)
    rows = []
    for kept, taken in laps.items():
        for number, phase in enumerate(("prefill", "decode", "whole")):
            times = torch.tensor([one[phase] for one in taken], dtype=torch.float64)
            low, median, high = times.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
            full = torch.tensor([one[phase] for one in laps[tokens]], dtype=torch.float64)
            most = [one["peaks"][number] for one in taken if number < 2 and one["peaks"][number] is not None]
            rows.append(
                {
                    "part": "language",
                    "model": model,
                    "phase": phase,
                    "kept_tokens": kept,
                    "tokens_before": tokens,
                    "prompt_tokens": kept + TEXT,
                    "new_tokens": NEW,
                    "median_ms": median,
                    "low_ms": low,
                    "high_ms": high,
                    "times_faster": float((full / times).median()),
                    "cache_bytes": taken[-1]["cache_bytes"],
                    "peak_bytes": max(most, default=None),
                    "runs": runs,
                    "warmup": warmup,
                    "batch": 1,
                    "dtype": str(language.dtype).removeprefix("torch."),
                }
            )
        said = ", ".join(f"{row['phase']} {row['median_ms']:.1f} ms" for row in rows[-3:])
        print(f"{model}: {kept} visual tokens, {said}")
    return rows

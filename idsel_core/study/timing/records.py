"""The record of one timed phase."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers

IDEAL, END_TO_END = "ideal", "end to end"
"""The method of a prompt that was cut by hand, and the phase of all of ``generate``."""


@dataclass(frozen=True)
class Timing:
    """Wall time of one phase of answering a batch of prompts, on the device and in the process that measured it.

    The fields are the columns of the store of times; `idsel_core.study.store.schema.MEANING` says what each means.
    """

    method: str
    budget: float | None
    convention: str | None
    phase: str
    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    warmup: int
    batch: int
    images: int
    tokens_before: int
    kept_tokens: int
    average_tokens: float
    prompt_tokens: int
    new_tokens: int
    flops: int | None
    cache_bytes: int | None
    peak_bytes: int | None
    over_ideal: float | None
    over_ideal_low: float | None
    over_ideal_high: float | None
    over_full: float | None
    attention: str
    device: str
    dtype: str
    threads: int
    torch: str = torch.__version__
    transformers: str = transformers.__version__


def circumstances(timing: Timing) -> str:
    """Say on what and how a time was measured."""
    return (
        f"{timing.device}, {timing.threads} threads, {timing.dtype}, {timing.attention} attention, batch "
        f"{timing.batch}, median of {timing.runs} runs, torch {timing.torch}, transformers {timing.transformers}"
    )

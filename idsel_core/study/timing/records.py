"""The record of one timed phase."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers

IDEAL, END_TO_END = "ideal", "end to end"
"""Names, beside those of methods and phases, of a prompt that was cut by hand, and of all of ``generate``."""


@dataclass(frozen=True)
class Timing:
    """Wall time of one phase of answering a batch of prompts, on the device and in the process that measured it.

    Attributes
    ----------
    method : str
        What selected: a method's name; "full" where nothing was dropped, "ideal" for a prompt cut by hand.
    budget : float, optional
        What the method was asked for; None if nothing.
    convention : str, optional
        What a budget means for a method that drops tokens inside the language model.
    phase : str
        "encode": pixels to projector output. "select": scores, selection and the cut of the prompts, and all choices
        inside the language model. "prefill": the shortened prompts to the first token. "decode": one further token,
        mean over those of a run. "end to end": all of ``generate``.
    median_ms, low_ms, high_ms : float
        Median and quartiles over runs, milliseconds for the whole batch.
    runs, warmup : int
        Runs that were measured, and those before them that were not.
    batch, images : int
        Prompts, and images in them.
    tokens_before, kept_tokens : int
        The most visual tokens of an image, before and after all that was dropped.
    average_tokens : float
        The most visual tokens of an image that layers of the language model read, mean over them.
    prompt_tokens : int
        Columns of the shortened prompts.
    new_tokens : int
        Tokens decoded in a run, beside the first one.
    flops : int, optional
        Analytic FLOPs of the phase, see `idsel_core.study.cost`; None where they are not known.
    cache_bytes : int, optional
        Keys and values that the prefill left.
    peak_bytes : int, optional
        The most memory that tensors took on the device during the phase, the model's own among them; None on a CPU,
        where torch does not say it.
    over_ideal, over_full : float, optional
        Median over runs of the time as a multiple of the ideal's, and of the full prompt's, in the same turn; of "end
        to end" alone.
    attention : str
        Attention implementation of the phase's model: the vision tower for "encode", else the language model.
    device, dtype : str
        Where and in what the model ran.
    threads : int
        CPU threads of torch.
    torch, transformers : str
        Their versions.
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

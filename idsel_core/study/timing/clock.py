"""Clocks and peak memory of a device."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch


def quartiles(milliseconds: Sequence[float]) -> dict[str, Any]:
    """Return the median and the quartiles of times as columns of `Timing`."""
    low, median, high = np.percentile(milliseconds, [25, 50, 75]).tolist()
    return {"median_ms": median, "low_ms": low, "high_ms": high}


def largest(peaks: Iterable[int | None]) -> int | None:
    """Return the largest of the peaks that are known, None if none is."""
    return max((peak for peak in peaks if peak is not None), default=None)


def begin(device: torch.device) -> float:
    """Forget the memory peak so far and return `now`."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return now(device)


def now(device: torch.device) -> float:
    """Wait for the work queued on a device and return the time in seconds."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes of tensors since `begin`, None where the device does not tell."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

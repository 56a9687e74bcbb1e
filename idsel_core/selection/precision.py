"""Full precision for similarities, whatever the caller's settings are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Keep autocast and TF32, which the caller may have on for the model, away from the similarities."""
    matmul = torch.backends.cuda.matmul
    with torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else nullcontext():
        if device.type != "cuda":
            yield
            return
        before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = before

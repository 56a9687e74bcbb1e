"""The type of numbers in which products are computed while training."""

import torch

from idsel_core.study.devices import multiplies_halves


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float32 where a device is slower at bfloat16."""
    return torch.bfloat16 if multiplies_halves(device) else torch.float32


def halves(device: torch.device) -> torch.autocast:
    """Return the context in which products are of bfloat16, where the device is not slower at them."""
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies_halves(device))

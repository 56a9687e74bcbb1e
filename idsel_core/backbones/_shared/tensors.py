"""Tensor operations that several model families use."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pixel_key(pixels: Tensor) -> Tensor:
    """Return a number for each image, (I, ...) to int64 (I,), that depends on its pixels only, on every device."""
    bits = pixels.detach().float().flatten(1).contiguous().view(torch.int32).long()
    return (bits * torch.arange(1, 2 * bits.shape[1], 2, device=bits.device)).sum(1)


def padded_rows(rows: Tensor, fill: float = 0, *, lengths: Tensor) -> Tensor:
    """Split concatenated rows, (sum of lengths, ...), into padded images, (I, N, ...).

    Parameters
    ----------
    rows : Tensor
        Tokens of all images.
    fill : float
        Value of padding.
    lengths : Tensor
        Number of tokens of each image, int64 (I,).
    """
    mask = torch.arange(int(lengths.max()), device=rows.device) < lengths[:, None]
    filled = rows.new_full((*mask.shape, *rows.shape[1:]), fill)
    return filled.masked_scatter(mask.view(*mask.shape, *[1] * (rows.ndim - 1)), rows)


def unpadded_rows(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Return the rows of all images, (I, N, ...), one behind the other, (R, ...): those of a mask (I, N), or all."""
    return rows.flatten(0, 1) if mask is None else rows[mask]


def as_weights(features: Tensor, module: nn.Module) -> Tensor:
    """Convert features to the dtype and device of a module's weights.

    Quantised integer weights are skipped, so that features keep their dtype where there are no others, and so is the
    device of weights that are loaded only when the module runs.
    """
    weights = list(module.parameters())
    weight = next((weight for weight in weights if weight.is_floating_point()), None)
    if weight is None:
        return features.to(weights[0].device)
    return features.to(weight.dtype) if weight.is_meta else features.to(weight)

"""Cosines of visual tokens with the question and its words."""

from __future__ import annotations

import torch
from torch import Tensor


def relevance_row(patches: Tensor, text: Tensor) -> Tensor:
    """Return the cosine of each patch with the text in their shared space.

    Parameters
    ----------
    patches : Tensor
        (B, N, D), any float dtype.
    text : Tensor
        (B, D), any float dtype.

    Returns
    -------
    Tensor
        float32 (B, N), -1 to 1; 0 for zero vectors.
    """
    return torch.cosine_similarity(patches.float(), text.float()[:, None], dim=-1)


def relevance_product(patches: Tensor, text: Tensor) -> Tensor:
    """Return the inner product of each patch with the text; see `relevance_row` for shapes."""
    with torch.autocast(patches.device.type, enabled=False):
        return (patches.float() @ text.float()[..., None])[..., 0]


def word_cosines(tokens: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Return the cosine of each visual token with each word.

    Parameters
    ----------
    tokens : Tensor
        (B, N, D), any float dtype.
    words : Tensor
        (B, T, D), any float dtype.
    mask : Tensor
        bool (B, T); True at words, False at padding.

    Returns
    -------
    Tensor
        float32 (B, N, T), -1 to 1; 0 for zero vectors, -inf at padding.
    """
    unit = [torch.nn.functional.normalize(x.float(), dim=-1) for x in (tokens, words)]
    with torch.autocast(tokens.device.type, enabled=False):
        return (unit[0] @ unit[1].mT).masked_fill(~mask[:, None], -torch.inf)

"""``gamma="auto"``: the sharpness of the suppression from each image's own distances."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from idsel_core.selection.suppression import rounding, score_dtype

WEIGHT = 0.01
"""Weight, by definition, at which a pick suppresses a token at the image's mean distance."""

CHUNK = {"cpu": 2**18}
"""Most numbers of the features that are read at a time, in their wider type: so many stay in a processor's cache."""

CHUNK_ELSEWHERE = 2**24
"""The same on a GPU, where a launch costs more than memory does."""


def mean_distance(x: Tensor, inverse: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cosine distance of two different tokens of each image.

    It is exact and needs no table of all pairs: the squared length of the sum of N unit vectors is N and the cosines of
    all pairs. A zero vector is at distance 1 from every token.

    Parameters
    ----------
    x : Tensor
        (B, N, D), any float dtype; padding may hold any value.
    inverse : Tensor
        (B, N); 1 / |x|, 0 for zero vectors.
    valid : Tensor
        bool (B, N); True at tokens, at one of each row at least.

    Returns
    -------
    Tensor
        (B,) in `score_dtype`; 0 for an image of one token.
    """
    working = score_dtype(x.device)
    batch, tokens, width = x.shape
    unit = valid & (inverse > 0)  # (B, N): tokens that have a direction
    total = torch.zeros(batch, 1, width, dtype=working, device=x.device)
    step = max(1, CHUNK.get(x.device.type, CHUNK_ELSEWHERE) // (batch * width))
    whole = bool(valid.all())
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        values = x[:, part].to(working)
        if not whole:
            values = values.masked_fill(~valid[:, part, None], 0)
        lengths = torch.linalg.vector_norm(values, dim=2)  # (B, n)
        factors = torch.where(unit[:, part], 1 / lengths, 0)
        total += factors[:, None] @ values
    count = valid.sum(1).to(working)  # (B,)
    cosines = total.square().sum((1, 2)) - unit.sum(1)
    return (1 - cosines / (count * (count - 1)).clamp_min(1)).clamp_min(0) * (count > 1)


def automatic_gamma(x: Tensor, inverse: Tensor, valid: Tensor) -> Tensor:
    """Return the gamma of each image at which a token at the mean distance is suppressed with the weight `WEIGHT`.

    With the mean distance m, gamma = ln(1 / WEIGHT) / m^2. So the weight of a pair of tokens depends on their distance
    in units of the image's mean distance: it stays the same if all distances of the image change by one factor, as
    they nearly do if one vector is added to all features. Where all tokens are duplicates every gamma gives the same.

    Parameters
    ----------
    x, inverse, valid
        As for `mean_distance`.

    Returns
    -------
    Tensor
        (B,) in `score_dtype`, finite.
    """
    least = rounding(inverse.dtype)
    return -math.log(WEIGHT) / mean_distance(x, inverse, valid).clamp_min(least).square()

"""``gamma="auto"``: the sharpness of the suppression from each image's own distances."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from idsel_core.selection.precision import full_precision
from idsel_core.selection.suppression import rounding, score_dtype

WEIGHT = 0.01
"""Weight, by definition, at which a pick suppresses a token at the image's mean distance."""

TOGETHER = 64
"""Tokens whose unit features are added in their own dtype, before these sums are added in float64."""


def mean_distance(x: Tensor, inverse: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the mean cosine distance of two different tokens of each image.

    It needs no table of all pairs: the squared length of the sum of N unit vectors is N and the cosines of all pairs. A
    zero vector is at distance 1 from every token.

    Parameters
    ----------
    x : Tensor
        (B, N, D), any float dtype; padding may hold any value.
    inverse : Tensor
        float32 or float64 (B, N); 1 / |x|, 0 for zero vectors. The unit vectors are added in its dtype.
    valid : Tensor, optional
        bool (B, N); True at tokens, at one of each row at least. By default all are tokens.

    Returns
    -------
    Tensor
        (B,) in `score_dtype`; 0 for an image of one token.
    """
    working = score_dtype(x.device)
    batch, tokens, width = x.shape
    factors, values = inverse, x.to(inverse.dtype)  # factors (B, N): 0 at tokens that have no direction
    if valid is None:
        count = x.new_full((batch,), tokens, dtype=working)  # (B,)
    else:
        count = valid.sum(1, dtype=working)
        factors = inverse.masked_fill(~valid, 0)
        if not bool(valid.all()):
            values = values.masked_fill(~valid[..., None], 0)
    sums = []
    with full_precision(x.device):
        whole = tokens - tokens % TOGETHER
        for part, size in ((slice(whole), TOGETHER), (slice(whole, tokens), tokens - whole)):
            if part.stop > (part.start or 0):
                # (B G, 1, n) @ (B G, n, D): G groups of n tokens an image.
                grouped = factors[:, part].reshape(-1, 1, size) @ values[:, part].reshape(-1, size, width)
                sums.append(grouped.view(batch, -1, width).sum(1, dtype=working))
    total = functools.reduce(torch.add, sums)  # (B, D)
    cosines = total.square().sum(1) - (factors > 0).sum(1)
    return (1 - cosines / (count * (count - 1)).clamp_min(1)).clamp_min(0) * (count > 1)


def automatic_gamma(x: Tensor, inverse: Tensor, valid: Tensor | None = None) -> Tensor:
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

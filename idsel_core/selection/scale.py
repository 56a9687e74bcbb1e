"""``gamma="auto"``: the sharpness of the suppression from each image's own distances."""

from __future__ import annotations

import math

from torch import Tensor

from idsel_core.selection.suppression import rounding, score_dtype

WEIGHT = 0.01
"""Weight, by definition, at which a pick suppresses a token at the image's mean distance."""

CHUNK = 2**22
"""Most numbers of the features that are read at a time."""


def mean_distance(x: Tensor, inverse: Tensor, valid: Tensor) -> Tensor:
    """Return the mean cosine distance of two different tokens of each image.

    It is exact and needs no table of all pairs: for N unit vectors u and their mean m, the mean of 1 - cos over all
    pairs is the sum of |u - m|^2 divided by N - 1. A zero vector is at distance 1 from every token.

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
    factors = inverse.to(working).masked_fill(~valid, 0)[..., None]  # (B, N, 1)
    width = max(1, CHUNK // (x.shape[0] * x.shape[2]))
    parts = [slice(start, start + width) for start in range(0, x.shape[1], width)]

    def unit(part: slice) -> Tensor:
        return x[:, part].to(working).masked_fill(~valid[:, part, None], 0) * factors[:, part]

    count = valid.sum(1).to(working)  # (B,)
    mean = sum(unit(part).sum(1, keepdim=True) for part in parts) / count[:, None, None]  # (B, 1, D)
    spread = sum((unit(part) - mean).square().sum(2).masked_fill(~valid[:, part], 0).sum(1) for part in parts)
    zeros = ((factors[..., 0] == 0) & valid).sum(1)
    return (spread * count / (count - 1).clamp_min(1) + zeros) / count * (count > 1)


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

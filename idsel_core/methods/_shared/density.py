"""Centres of clusters by density peaks."""

from __future__ import annotations

import torch
from torch import Tensor

from idsel_core.selection.suppression import score_dtype


def peak_scores(x: Tensor, mask: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Return how well each token serves as the centre of a cluster: its density times its distance to a denser token.

    The density is exp(-m), where m is the mean squared distance to the nearest tokens, the token itself included.
    Distances are Euclidean, divided by the root of D. The densest token has the largest distance of all instead. Of
    equally dense tokens the first counts as denser.

    Parameters
    ----------
    x : Tensor
        (I, T, D), float32 or better, in which distances are taken; padding may hold any value.
    mask : Tensor
        bool (I, T); True at tokens.
    neighbours : Tensor
        Number of nearest tokens of each row, int64 (I,); all if there are fewer.

    Returns
    -------
    tuple[Tensor, Tensor]
        Scores, (I, T), and distances, (I, T, T), both arbitrary at padding.
    """
    x = x.masked_fill(~mask[..., None], 0)
    neighbours = neighbours.minimum(mask.sum(1)).clamp_min(1)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").to(score_dtype(x.device))
    distance = distance / x.shape[2] ** 0.5
    place = torch.arange(x.shape[1], device=x.device)
    # (I, T, T): distances of each token by rank, those beyond the nearest set to 0.
    nearest = distance.masked_fill(~mask[:, None], torch.inf).sort(dim=2).values
    nearest = nearest.masked_fill((place >= neighbours[:, None])[:, None], 0)
    spread = nearest.square().sum(2) / neighbours[:, None]  # (I, T): m; smaller is denser
    # denser[i, t, s]: token s is denser than token t.
    first, equal = place < place[:, None], spread[:, None] == spread[..., None]
    denser = mask[:, None] & ((spread[:, None] < spread[..., None]) | (equal & first))
    widest = distance.masked_fill(~(mask[:, None] & mask[..., None]), 0).amax((1, 2))
    gap = distance.masked_fill(~denser, torch.inf).amin(2).minimum(widest[:, None])
    return (-spread).exp() * gap, distance


def peaks_of(x: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return the scores (T,) and distances (T, T) of `peak_scores` of one row (T, D), in float64 where possible."""
    x, mask = x.to(score_dtype(x.device))[None], torch.ones(1, len(x), dtype=torch.bool, device=x.device)
    scores, distance = peak_scores(x, mask, mask.sum(1).clamp_max(neighbours))
    return scores[0], distance[0]

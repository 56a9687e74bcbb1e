"""Centres of clusters by density peaks."""

from __future__ import annotations

import torch
from torch import Tensor

from idsel_core.selection.suppression import score_dtype


def peak_scores(x: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """Return how well each token serves as the centre of a cluster: its density times its distance to a denser token.

    The density is exp(-m), where m is the mean squared distance to the nearest tokens, the token itself included.
    Distances are Euclidean, divided by the root of D. The densest token has the largest distance of all instead. Of
    equally dense tokens the first counts as denser.

    Parameters
    ----------
    x : Tensor
        (T, D), any float dtype.
    neighbours : int
        Number of nearest tokens; all if there are fewer.

    Returns
    -------
    tuple[Tensor, Tensor]
        Scores, (T,), and distances, (T, T).
    """
    x = x.to(score_dtype(x.device))
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    spread = distance.sort(dim=1).values[:, :neighbours].square().mean(1)  # (T,): m; smaller is denser
    place = torch.arange(len(x), device=x.device)
    # (T, T): denser[t, s]: token s is denser than token t.
    denser = (spread < spread[:, None]) | ((spread == spread[:, None]) & (place < place[:, None]))
    gap = distance.masked_fill(~denser, torch.inf).amin(1).minimum(distance.max())
    return (-spread).exp() * gap, distance

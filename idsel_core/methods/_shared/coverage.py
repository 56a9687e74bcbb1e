"""Greedy maximisation of coverage."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**25
"""Most numbers of the table that are read at a time."""


def cover(table: Tensor, weights: Tensor, mask: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Pick the token of largest weight times coverage gain, round by round.

    The coverage of an element is the largest value among the picked tokens, 0 at first. The gain of a token is the sum
    over elements of max(0, value - coverage). A pick changes gains only through the elements that it covers better than
    before, so only these are read: about N^2 log K numbers for K picks instead of N^2 K. Gains are updated in float64,
    so that they equal newly computed ones.

    Parameters
    ----------
    table : Tensor
        float (B, R, N); how well each of N tokens covers each of R elements.
    weights : Tensor
        (B, N), 0 or more; padding may hold any value.
    mask : Tensor
        bool (B, N); True at tokens.
    rounds : int
        Number of tokens to pick; a row with fewer tokens repeats some.

    Returns
    -------
    order : Tensor
        Long (B, rounds).
    gains : Tensor
        float64 (B, N); weight times gain of each token before the first pick, -inf at padding.
    """
    image = torch.arange(len(table), device=table.device)
    coverage = table.new_zeros(table.shape[:2])  # (B, R)
    adds = table.relu().sum(dim=1, dtype=torch.float64)  # (B, N)
    weights, out = weights.double(), ~mask
    gains = (adds * weights).masked_fill(out, -torch.inf)
    picks = []
    for _ in range(rounds):
        pick = (adds * weights).masked_fill_(out, -torch.inf).max(dim=1).indices
        picks.append(pick)
        out[image, pick] = True
        reached = torch.maximum(table[image, :, pick], coverage)  # (B, R)
        rises = (reached > coverage).byte()
        # (B, C): elements whose coverage rises, as many as in the row with most of them.
        changed = rises.sort(dim=1, descending=True, stable=True).indices[:, : int(rises.sum(dim=1).max())]
        for part in torch.split(changed, max(1, CHUNK // (len(table) * table.shape[2])), dim=1):
            values = table[image[:, None], part]  # (B, C, N)
            adds -= (values - coverage.gather(1, part)[..., None]).relu_().sum(dim=1, dtype=torch.float64)
            adds += (values - reached.gather(1, part)[..., None]).relu_().sum(dim=1, dtype=torch.float64)
        coverage = reached
    return torch.stack(picks, dim=1), gains

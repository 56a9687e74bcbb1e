"""Greedy coverage: pick what best covers what the picked tokens do not cover yet."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**25
"""Numbers of the table that are looked at together."""


def cover(table: Tensor, weights: Tensor, mask: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Pick by weight times what a token adds to the coverage, which is each element's best value so far.

    What a token adds is the sum over elements of max(0, value - coverage), coverage starting at 0. A pick changes it
    through the elements that it covers better alone, so only these are looked at: with K picks about N^2 log K numbers
    and not N^2 K. Sums are kept in float64, so that they are what they would be if added up afresh.

    Parameters
    ----------
    table : Tensor
        float (B, R, N); how well each of N tokens covers each of R elements.
    weights : Tensor
        (B, N), 0 or more; padding may hold anything.
    mask : Tensor
        bool (B, N); true on tokens.
    rounds : int
        How many tokens to pick; rows that run out of tokens repeat some.

    Returns
    -------
    order : Tensor
        Long (B, rounds).
    gains : Tensor
        float64 (B, N); weight times what each token adds before the first pick, -inf at padding.
    """
    image = torch.arange(len(table), device=table.device)
    coverage = table.new_zeros(table.shape[:2])
    adds = table.relu().sum(dim=1, dtype=torch.float64)
    weights, out = weights.double(), ~mask
    gains = (adds * weights).masked_fill(out, -torch.inf)
    picks = []
    for _ in range(rounds):
        pick = (adds * weights).masked_fill_(out, -torch.inf).max(dim=1).indices
        picks.append(pick)
        out[image, pick] = True
        reached = torch.maximum(table[image, :, pick], coverage)
        rises = (reached > coverage).byte()
        changed = rises.sort(dim=1, descending=True, stable=True).indices[:, : int(rises.sum(dim=1).max())]
        for part in torch.split(changed, max(1, CHUNK // (len(table) * table.shape[2])), dim=1):
            values = table[image[:, None], part]
            adds -= (values - coverage.gather(1, part)[..., None]).relu_().sum(dim=1, dtype=torch.float64)
            adds += (values - reached.gather(1, part)[..., None]).relu_().sum(dim=1, dtype=torch.float64)
        coverage = reached
    return torch.stack(picks, dim=1), gains

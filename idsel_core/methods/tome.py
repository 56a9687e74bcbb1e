"""ToMe: merging of similar tokens, round by round, until the budget is left."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from idsel_core.methods._shared.base import Method
from idsel_core.methods._shared.checks import check_flag
from idsel_core.methods._shared.ragged import (
    argsort_by,
    cosines,
    gather_tokens,
    move_padding_last,
    sort_indices,
    sum_by_group,
    unit_vectors,
    with_merged_features,
)
from idsel_core.selection.budget import resolve_budget
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


@dataclass(frozen=True)
class ToMe(Method):
    """Merge tokens of similar keys by bipartite soft matching, until the budget is left.

    A round compares the tokens at even places with those at odd places, and merges the even tokens that are most
    similar to an odd token into it: as many as the budget needs, at most half of all. A merged token is the mean of all
    tokens that it is made of; so is its key, averaged over heads. It takes the lowest of their places.

    The authors merge some tokens in each tower layer, with attention in proportion to their size; here all rounds come
    between the tower and the projector.

    Source: ToMe, arXiv 2210.09461.

    Parameters
    ----------
    faithful : bool
        As the authors' code does, keep the tokens after a round in the order of its halves, even tokens first, instead
        of raster order.
    """

    name: ClassVar[str] = "tome"
    label: ClassVar[str] = "ToMe"

    _: KW_ONLY
    faithful: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("faithful", self.faithful)

    @torch.no_grad()
    def select(self, tokens: VisualTokens) -> Selection:
        """Select tokens of each image."""
        mask, size = tokens.mask, tokens.mask.shape[1]
        counts, keys = resolve_budget(self.budget, tokens.lengths), tokens.keys.float().mean(2)
        group = torch.arange(size, device=mask.device).expand(mask.shape).masked_fill(~mask, -1)
        order, sizes = group, tokens.lengths
        left, wanted = sizes.tolist(), counts.tolist()
        while left != wanted:
            # Counted on the host and on the device, so that the host does not wait for the device.
            left = [n - min(n - goal, n // 2) for n, goal in zip(left, wanted, strict=True)]
            gone = torch.minimum(sizes - counts, sizes // 2)
            sizes = sizes - gone
            order, group = _matched(order, group, keys, gone)
            order = (move_padding_last(order) if self.faithful else sort_indices(order, size))[:, : max(left)]
        sums, numbers = sum_by_group(tokens.encoder_features.float(), group, size)
        states = gather_tokens(sums / numbers.clamp_min(1)[..., None], order)
        equal_scores = mask.float().log()
        return with_merged_features(Selection.from_order(order, equal_scores, self.budget), tokens, states)


def _matched(order: Tensor, group: Tensor, keys: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """Merge `gone` (B,) tokens at even places of `order` (B, M) into tokens at odd places.

    A merged token is a group of tokens, named by its lowest index. `order` lists the groups, and `group` (B, N) holds
    the group of each token. Returns both after the round, with -1 in the order where a token was merged.
    """
    size = group.shape[1]
    sums, _ = sum_by_group(keys, group, size)
    x = unit_vectors(gather_tokens(sums, order), order >= 0)
    even, odd = order[:, ::2], order[:, 1::2]  # (B, E), (B, O)
    alike = cosines(x[:, ::2], x[:, 1::2]).masked_fill_((odd < 0)[:, None], -torch.inf)
    nearest, partner = alike.max(dim=2)  # (B, E): similarity and place of the most similar odd token
    first = torch.arange(even.shape[1], device=order.device) < gone[:, None]
    merges = torch.zeros_like(first).scatter(1, argsort_by((nearest,), even >= 0), first)
    # (B, O): names of the odd groups after the round, and (B, N + 1): new name of each old one.
    lowest = odd.scatter_reduce(1, partner, even.where(merges, size), "amin")
    before = torch.cat([odd, even.masked_fill(~merges, -1)], 1)
    after = torch.cat([lowest, lowest.gather(1, partner)], 1)
    renamed = torch.arange(size + 1, device=order.device).repeat(len(order), 1)
    renamed = renamed.scatter(1, before.where(before >= 0, size), after)
    group = renamed.gather(1, group.clamp_min(0)).where(group >= 0, -1)
    halves = torch.cat([even.masked_fill(merges, -1), lowest], 1)
    return halves.where((gone > 0)[:, None], order), group

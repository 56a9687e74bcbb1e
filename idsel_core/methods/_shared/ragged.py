"""Steps that several methods take: cosines, ranks, and the bookkeeping of ragged batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from idsel_core.selection.precision import full_precision
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


def unit_vectors(features: Tensor, mask: Tensor) -> Tensor:
    """Return unit vectors of features (B, N, D) in float32 or better; zero at padding and for zero vectors."""
    working = torch.promote_types(features.dtype, torch.float32)
    return torch.nn.functional.normalize(features.to(working).masked_fill(~mask[..., None], 0), dim=-1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the products (B, N, M) of unit vectors (B, N, D) and (B, M, D), whatever autocast and TF32 are set to."""
    with full_precision(a.device):
        return a @ b.mT


def gather_tokens(values: Tensor, places: Tensor) -> Tensor:
    """Return values (B, N, D) at places (B, K), anything where a place is -1, as (B, K, D)."""
    return values.gather(1, places.clamp_min(0)[..., None].expand(-1, -1, values.shape[-1]))


def truncate(order: Tensor, counts: Tensor) -> Tensor:
    """Keep the first `counts` (B,) of each row of `order` (B, M), -1 behind them, as (B, max count)."""
    order = order[:, : int(counts.max())]
    return order.masked_fill(torch.arange(order.shape[1], device=order.device) >= counts[:, None], -1)


def argsort_by(keys: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return tokens by falling keys (B, N), the first key first, ties to the lowest index, padding last."""
    order = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    for key in (*reversed(keys), mask):
        falling = key.gather(1, order).to(torch.promote_types(key.dtype, torch.uint8))
        order = order.gather(1, falling.sort(dim=1, descending=True, stable=True).indices)
    return order


def rank_in_group(groups: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Return the rank (B, N) that each token has by falling score among the tokens of its group (B, N)."""
    order = argsort_by((groups, scores), mask)
    grouped = groups.gather(1, order)
    place = torch.arange(order.shape[1], device=order.device).expand(order.shape)
    begins = torch.ones_like(mask)
    begins[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    first = (place * begins).cummax(dim=1).values
    return torch.empty_like(order).scatter(1, order, place - first)


def move_padding_last(order: Tensor) -> Tensor:
    """Move the -1 of each row of `order` (B, K) behind what it names."""
    return order.gather(1, (order >= 0).byte().sort(dim=1, descending=True, stable=True).indices)


def drop_repeats(order: Tensor) -> Tensor:
    """Drop what a row of `order` (B, K) names again, and fill up with -1 behind."""
    again = (order[:, :, None] == order[:, None, :]).tril(-1).any(2)
    return move_padding_last(order.masked_fill(again, -1))


def to_mask(order: Tensor, size: int) -> Tensor:
    """Return bool (B, size), true at the tokens that `order` (B, K) names; -1 names none."""
    mask = torch.zeros(len(order), size + 1, dtype=torch.bool, device=order.device)
    return mask.scatter(1, order.where(order >= 0, size), True)[:, :size]


def sort_indices(order: Tensor, size: int) -> Tensor:
    """Sort each row of `order` (B, K), which names tokens below `size`, with -1 behind them."""
    rising = order.where(order >= 0, size).sort(dim=1).values
    return rising.masked_fill(rising == size, -1)


def sum_by_group(values: Tensor, groups: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return sums (B, G, D) and numbers (B, G) of values (B, N, D) that are of groups (B, N) below `size`, or of none.

    Each sum is made in one order, on a GPU too. -1 is no group.
    """
    batch = torch.arange(len(groups), device=groups.device)[:, None]
    slots = (groups.where(groups >= 0, size) + batch * (size + 1)).flatten()
    numbers = slots.new_zeros(len(groups) * (size + 1)).scatter_add_(0, slots, torch.ones_like(slots))
    sums = torch.nn.functional.embedding_bag(
        slots.sort(stable=True).indices, values.flatten(0, 1), numbers.cumsum(0) - numbers, mode="sum"
    )
    return sums.view(len(groups), size + 1, -1)[:, :size], numbers.view(len(groups), -1)[:, :size]


def merge_into_nearest(values: Tensor, members: Tensor, likeness: Tensor) -> tuple[Tensor, Tensor]:
    """Give each of the `members`, bool (B, N), to the target that it is most like (B, N, G), the first of equals.

    Returns sums (B, G, D) of their values (B, N, D), and how many they are (B, G).
    """
    nearest = likeness.max(dim=2).indices
    return sum_by_group(values, nearest.masked_fill(~members, -1), likeness.shape[2])


def with_merged_features(selection: Selection, tokens: VisualTokens, states: Tensor) -> Selection:
    """Return the selection with merged encoder features (B, K, Dv), in reading order, as its new features."""
    return replace(selection, features=tokens.project(states.to(tokens.encoder_features.dtype)))

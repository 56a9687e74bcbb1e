"""Cosines, ranks, gathers and merges on padded batches.

An `order` (B, K) holds token indices in the order of the picks, with -1 after the last token of a shorter row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from idsel_core.selection.precision import full_precision
from idsel_core.selection.result import Selection
from idsel_core.visual_tokens import VisualTokens


def unit_vectors(features: Tensor, mask: Tensor) -> Tensor:
    """Normalise features (B, N, D) to unit length, in float32 or better; 0 at padding and for zero vectors."""
    working = torch.promote_types(features.dtype, torch.float32)
    return torch.nn.functional.normalize(features.to(working).masked_fill(~mask[..., None], 0), dim=-1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products (B, N, M) of unit vectors (B, N, D) and (B, M, D), without autocast and TF32."""
    with full_precision(a.device):
        return a @ b.mT


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 - cos (...) of vectors (..., D), as |x - y|^2 / 2 of unit vectors, which is exact near 0 too."""
    x, y = (torch.nn.functional.normalize(v.to(torch.promote_types(v.dtype, torch.float32)), dim=-1) for v in (x, y))
    zeros = 2 - x.any(-1).byte() - y.any(-1).byte()  # (...): number of zero vectors of each pair
    return ((x - y).square_().sum(-1) + zeros) / 2


def gather_tokens(values: Tensor, places: Tensor) -> Tensor:
    """Gather values (B, N, D) at `places` (B, K), giving (B, K, D); arbitrary where a place is -1."""
    return values.gather(1, places.clamp_min(0)[..., None].expand(-1, -1, values.shape[-1]))


def truncate(order: Tensor, counts: Tensor) -> Tensor:
    """Keep the first `counts` (B,) entries of each row of `order` (B, M), giving (B, max count), -1 after them."""
    order = order[:, : int(counts.max())]
    return order.masked_fill(torch.arange(order.shape[1], device=order.device) >= counts[:, None], -1)


def argsort_by(keys: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return token indices (B, N) by falling keys; ties go to the lowest index, and padding comes last.

    Parameters
    ----------
    keys : sequence of Tensor
        (B, N) each; the first key decides, the second among equals of the first, and so on. Padding may hold any value.
    mask : Tensor
        bool (B, N); True at tokens.
    """
    order = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    # Stable sorts by the last key first, as in radix sort; the mask comes last and so decides before all keys.
    for key in (*reversed(keys), mask):
        falling = key.gather(1, order).to(torch.promote_types(key.dtype, torch.uint8))
        order = order.gather(1, falling.sort(dim=1, descending=True, stable=True).indices)
    return order


def rank_in_group(groups: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Return the rank of each token, from 0, by falling score among the tokens of its group; all (B, N)."""
    order = argsort_by((groups, scores), mask)
    grouped = groups.gather(1, order)  # group of each place in the order
    place = torch.arange(order.shape[1], device=order.device).expand(order.shape)
    begins = torch.ones_like(mask)
    begins[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    first = (place * begins).cummax(dim=1).values  # place at which the group of each place begins
    return torch.empty_like(order).scatter(1, order, place - first)


def move_padding_last(order: Tensor) -> Tensor:
    """Move the -1 entries of each row of `order` (B, K) to its end."""
    return order.gather(1, (order >= 0).byte().sort(dim=1, descending=True, stable=True).indices)


def drop_repeats(order: Tensor) -> Tensor:
    """Drop repeated tokens from each row of `order` (B, K), and fill up with -1 at its end."""
    again = (order[:, :, None] == order[:, None, :]).tril(-1).any(2)  # (B, K): an earlier entry is the same
    return move_padding_last(order.masked_fill(again, -1))


def to_mask(order: Tensor, size: int) -> Tensor:
    """Return a mask, bool (B, size), of the tokens in `order` (B, K)."""
    mask = torch.zeros(len(order), size + 1, dtype=torch.bool, device=order.device)
    return mask.scatter(1, order.where(order >= 0, size), True)[:, :size]


def sort_indices(order: Tensor, size: int) -> Tensor:
    """Sort the tokens, below `size`, of each row of `order` (B, K), with -1 after them."""
    rising = order.where(order >= 0, size).sort(dim=1).values
    return rising.masked_fill(rising == size, -1)


def sum_by_group(values: Tensor, groups: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sum values by group, in a fixed order on every device.

    Parameters
    ----------
    values : Tensor
        (B, N, D).
    groups : Tensor
        Group of each token, int64 (B, N), below `size`; -1 is no group.
    size : int
        Number of groups, G.

    Returns
    -------
    tuple[Tensor, Tensor]
        Sums, (B, G, D), and the number of tokens in each group, int64 (B, G).
    """
    batch = torch.arange(len(groups), device=groups.device)[:, None]
    # (B * N,): each image has G + 1 slots, the last of which takes tokens of no group.
    slots = (groups.where(groups >= 0, size) + batch * (size + 1)).flatten()
    numbers = slots.new_zeros(len(groups) * (size + 1)).scatter_add_(0, slots, torch.ones_like(slots))
    sums = torch.nn.functional.embedding_bag(
        slots.sort(stable=True).indices, values.flatten(0, 1), numbers.cumsum(0) - numbers, mode="sum"
    )
    return sums.view(len(groups), size + 1, -1)[:, :size], numbers.view(len(groups), -1)[:, :size]


def merge_into_nearest(values: Tensor, members: Tensor, likeness: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the values of the tokens that are most similar to each target.

    Parameters
    ----------
    values : Tensor
        (B, N, D).
    members : Tensor
        bool (B, N); True at the tokens to merge.
    likeness : Tensor
        Similarity of each token to each of G targets, (B, N, G); among equal ones the first target wins.

    Returns
    -------
    tuple[Tensor, Tensor]
        Sums, (B, G, D), and the number of tokens merged into each target, int64 (B, G).
    """
    nearest = likeness.max(dim=2).indices
    return sum_by_group(values, nearest.masked_fill(~members, -1), likeness.shape[2])


def with_merged_features(selection: Selection, tokens: VisualTokens, states: Tensor) -> Selection:
    """Set the features of a selection to the projection of merged encoder features (B, K, Dv), in reading order."""
    return replace(selection, features=tokens.project(states.to(tokens.encoder_features.dtype)))

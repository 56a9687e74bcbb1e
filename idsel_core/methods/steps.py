"""Steps that several methods take: cosines, ranks, and the bookkeeping of ragged batches."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from idsel_core.selection import Selection, _full_precision
from idsel_core.tokens import VisualTokens


def unit(features: Tensor, mask: Tensor) -> Tensor:
    """Return unit vectors of features (B, N, D) in float32 or better; zero at padding and for zero vectors."""
    working = torch.promote_types(features.dtype, torch.float32)
    return torch.nn.functional.normalize(features.to(working).masked_fill(~mask[..., None], 0), dim=-1)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Return the products (B, N, M) of unit vectors (B, N, D) and (B, M, D), whatever autocast and TF32 are set to."""
    with _full_precision(a.device):
        return a @ b.mT


def take(values: Tensor, places: Tensor) -> Tensor:
    """Return values (B, N, D) at places (B, K), anything where a place is -1, as (B, K, D)."""
    return values.gather(1, places.clamp_min(0)[..., None].expand(-1, -1, values.shape[-1]))


def cut(order: Tensor, counts: Tensor) -> Tensor:
    """Keep the first `counts` (B,) of each row of `order` (B, M), -1 behind them, as (B, max count)."""
    order = order[:, : int(counts.max())]
    return order.masked_fill(torch.arange(order.shape[1], device=order.device) >= counts[:, None], -1)


def ranked(keys: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Return tokens by falling keys (B, N), the first key first, ties to the lowest index, padding last."""
    order = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
    for key in (*reversed(keys), mask):
        falling = key.gather(1, order).to(torch.promote_types(key.dtype, torch.uint8))
        order = order.gather(1, falling.sort(dim=1, descending=True, stable=True).indices)
    return order


def rank_within(groups: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """Return the rank (B, N) that each token has by falling score among the tokens of its group (B, N)."""
    order = ranked((groups, scores), mask)
    grouped = groups.gather(1, order)
    place = torch.arange(order.shape[1], device=order.device).expand(order.shape)
    begins = torch.ones_like(mask)
    begins[:, 1:] = grouped[:, 1:] != grouped[:, :-1]
    first = (place * begins).cummax(dim=1).values
    return torch.empty_like(order).scatter(1, order, place - first)


def compact(order: Tensor) -> Tensor:
    """Move the -1 of each row of `order` (B, K) behind what it names."""
    return order.gather(1, (order >= 0).byte().sort(dim=1, descending=True, stable=True).indices)


def distinct(order: Tensor) -> Tensor:
    """Drop what a row of `order` (B, K) names again, and fill up with -1 behind."""
    again = (order[:, :, None] == order[:, None, :]).tril(-1).any(2)
    return compact(order.masked_fill(again, -1))


def picked(order: Tensor, size: int) -> Tensor:
    """Return bool (B, size), true at the tokens that `order` (B, K) names; -1 names none."""
    mask = torch.zeros(len(order), size + 1, dtype=torch.bool, device=order.device)
    return mask.scatter(1, order.where(order >= 0, size), True)[:, :size]


def ascending(order: Tensor, size: int) -> Tensor:
    """Sort each row of `order` (B, K), which names tokens below `size`, with -1 behind them."""
    rising = order.where(order >= 0, size).sort(dim=1).values
    return rising.masked_fill(rising == size, -1)


def pooled(values: Tensor, groups: Tensor, size: int) -> tuple[Tensor, Tensor]:
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


def absorbed(values: Tensor, members: Tensor, likeness: Tensor) -> tuple[Tensor, Tensor]:
    """Give each of the `members`, bool (B, N), to the target that it is most like (B, N, G), the first of equals.

    Returns sums (B, G, D) of their values (B, N, D), and how many they are (B, G).
    """
    nearest = likeness.max(dim=2).indices
    return pooled(values, nearest.masked_fill(~members, -1), likeness.shape[2])


def with_states(selection: Selection, tokens: VisualTokens, states: Tensor) -> Selection:
    """Return the selection with merged encoder features (B, K, Dv), in reading order, as its new features."""
    return replace(selection, features=tokens.project(states.to(tokens.encoder_features.dtype)))


def check_share(knob: str, value: float) -> None:
    """Raise ValueError unless the value of a knob is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(f"{knob} must be a number from 0 to 1, not {value!r}")


def check_above_zero(knob: str, value: float) -> None:
    """Raise ValueError unless the value of a knob is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < float("inf"):
        raise ValueError(f"{knob} must be a number above 0, not {value!r}")


def check_count(knob: str, value: int) -> None:
    """Raise ValueError unless the value of a knob is an int, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{knob} must be an int, 1 or more, not {value!r}")


def check_flag(knob: str, value: bool) -> None:
    """Raise ValueError unless the value of a knob is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{knob} must be True or False, not {value!r}")
